# SPDX-License-Identifier: Apache-2.0
"""What experts have become: how far apart they are, and who gets which token.

Experts start as copies of one MLP. Their cosines are those of Lo et al., "A
Closer Look into Mixture-of-Experts" (2024); an expert minus that MLP is a task
vector (Ilharco et al., "Editing Models with Task Arithmetic", 2023), and where
the cosines of these are small, experts have learned different things.
"""

from collections.abc import Callable, Mapping
import math
import re
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float
import numpy as np

from upcycle import surgery, trees
from upcycle.models import moe


class Apart(NamedTuple):
  """How far experts of a layer are from one another and from the dense MLP.

  Attributes:
    experts: cosines of their parameters.
    updates: cosines of what was added to the dense MLP's; NaN of experts that
      are still equal to it.
    dense: cosines with the dense MLP.
    distance: |expert - dense| / |dense|.
  """

  experts: Float[np.ndarray, 'E E']
  updates: Float[np.ndarray, 'E E']
  dense: Float[np.ndarray, ' E']
  distance: Float[np.ndarray, ' E']


class Seen(NamedTuple):
  """What a router made of a batch.

  Attributes:
    weights: combine weights, 0 where an expert has not taken a token.
    probabilities: the router's softmax over experts.
  """

  weights: Float[Array, 'B L E']
  probabilities: Float[Array, 'B L E']


def vectors(
  dense: trees.Tree, sparse: trees.Tree
) -> dict[str, tuple[Float[np.ndarray, ' P'], Float[np.ndarray, 'E P']]]:
  """All parameters of a dense MLP and of its experts, by path of the MoE layer.

  Args:
    dense: parameters of the model before surgery.
    sparse: of the upcycled one, at any step.

  Raises:
    ValueError: the one is not upcycled from the other, see `surgery.origins`.
  """
  have, want = trees.flatten(dense), trees.flatten(sparse)
  parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
  for path, origin in surgery.origins(dense, sparse).items():
    if origin.kind == 'expert':
      # Before the parameter's own name stands that of the experts.
      layer = path.removesuffix(f'/{origin.name}').rpartition('/')[0]
      experts = np.asarray(want[path], np.float64)
      one = np.asarray(have[origin.source], np.float64).ravel()
      pair = one, experts.reshape(len(experts), -1)
      parts.setdefault(layer, []).append(pair)
  return {
    layer: tuple(np.concatenate(x, -1) for x in zip(*pairs, strict=True))
    for layer, pairs in parts.items()
  }


def apart(
  dense: Float[np.ndarray, ' P'], experts: Float[np.ndarray, 'E P']
) -> Apart:
  """Cosines and distances of a layer's `vectors`."""
  updates = experts - dense
  sizes = np.linalg.norm(updates, axis=-1)
  return Apart(
    cosines(experts, experts),
    cosines(updates, updates),
    cosines(experts, dense[None])[:, 0],
    sizes / np.linalg.norm(dense),
  )


def cosines(
  a: Float[np.ndarray, 'N P'], b: Float[np.ndarray, 'K P']
) -> Float[np.ndarray, 'N K']:
  """Of all rows with all rows; NaN where one is 0."""
  norms = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b)]
  with np.errstate(invalid='ignore'):
    return (a / norms[0]) @ (b / norms[1]).T


def make_seen(
  model: Any, loss: Callable[..., Any]
) -> Callable[[Any, Any], dict[str, Seen]]:
  """A jitted (params, batch) -> `Seen` of every MoE layer, by its path.

  Routing is that of evaluation: its capacity, and no noise. One device.

  Args:
    model: a sparse T5 or ViT.
    loss: that the model is trained with, see `losses`: it knows the inputs.
  """

  @jax.jit
  def seen(params: Any, batch: Mapping[str, Any]) -> dict[str, Seen]:
    found: dict[str, Any] = {}

    def apply(**inputs):
      logits, state = model.apply(
        {'params': params},
        **inputs,
        mutable=['intermediates'],
        capture_intermediates=_routes,
      )
      found.update(trees.flatten(state['intermediates']))
      return logits

    loss(apply, batch)
    return {
      layer: _seen(config, layer, found)
      for layer, config in model.moe_layers().items()
    }

  return seen


def _routes(module: Any, method: str) -> bool:
  kinds = {'route': moe.MoeLayer, '__call__': moe.MoeLayer | moe.RouterWeights}
  return isinstance(module, kinds.get(method, ()))


def _seen(config: moe.MoeConfig, layer: str, found: Mapping[str, Any]) -> Seen:
  """Of one layer, from what its methods returned; groups become rows again."""
  routed, output, logits = (
    next(x for path, (x,) in found.items() if re.fullmatch(pattern, path))
    for pattern in (
      f'{layer}/route',
      f'{layer}/__call__',
      f'{layer}/[^/]*/__call__',  # that of the router
    )
  )
  B, L, _ = output.shape
  parts = math.gcd(B, config.group_multiple)

  def rows(x: Array) -> Array:
    x = x.reshape(parts, -1, x.shape[-1])[:, : B * L // parts]
    return x.reshape(B, L, -1)

  weights = routed.masks(logits.shape[1])[1].sum(-1)
  return Seen(rows(weights), rows(jax.nn.softmax(logits)))
