# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of the MoE layer measures, and its goals."""

import functools
from typing import NamedTuple

from upcycle import routing


class Shape(NamedTuple):
  """Of a layer: T5 1.1 Base, ViT-B, and one that laptops train.

  Attributes:
    M: width of the tokens.
    F: width of the hidden layer.
    activations: of its kernels: two make a gated MLP.
    use_bias: of all its kernels.
    tokens: in all.
  """

  M: int
  F: int
  activations: tuple[str, ...]
  use_bias: bool
  tokens: int


class Case(NamedTuple):
  """A row of the table.

  Attributes:
    shape: name in SHAPES.
    groups: that the tokens are in.
    E: number of experts.
    router: name in ROUTERS.
    goals: ratios to the bound, of the forward pass and of both passes; None
      where there is no goal.
    onehot: whether the one-hot form is measured too.
  """

  shape: str
  groups: int
  E: int
  router: str
  goals: tuple[float, float] | None
  onehot: bool = False


GATED = ('gelu', 'linear')
SHAPES = {
  'T5 Base': Shape(768, 2048, GATED, False, 4096),
  'ViT-B': Shape(768, 3072, ('gelu',), True, 32 * 197),
  'laptop': Shape(256, 1024, GATED, False, 1024),
}
# Two slots a token, whatever the router.
ROUTERS = {
  'Expert Choice': routing.expert_choice,
  'top-2': functools.partial(routing.top_k, k=2),
  'dropless': functools.partial(routing.dropless, k=2),
}
GOALS = {
  ('T5 Base', 8): (1.0, 1.05),
  ('T5 Base', 32): (1.1, 1.1),
  ('T5 Base', 128): (1.4, 1.35),
  ('ViT-B', 8): (0.95, 1.0),
  ('ViT-B', 32): (1.0, 1.05),
  ('laptop', 8): (1.15, 1.2),
  ('laptop', 32): (1.5, 1.5),
}
GROUPS = {'T5 Base': (1, 8), 'ViT-B': (1, 32), 'laptop': (1,)}

TABLE = [
  Case(
    shape,
    groups,
    E,
    router,
    goals,
    onehot=groups == 1 and E <= 32 and router != 'dropless',
  )
  for (shape, E), goals in GOALS.items()
  for groups in (GROUPS[shape] if E < 128 else (1,))
  for router in ROUTERS
  if router != 'dropless' or shape == 'laptop'
]
# Cost against the size of a group, for the figure.
GROWTH = [
  Case('T5 Base', groups, 32, 'Expert Choice', None, onehot=True)
  for groups in (32, 8, 4, 2, 1)
]
