# SPDX-License-Identifier: Apache-2.0
"""Surgery in the other direction: every MoE layer becomes a dense MLP.

The MLP is one of the experts or the mean of all; the router is dropped. A token
loses the choice of its experts, and without renormalisation also the sum of
its combine weights, its scale, by which the experts' outputs were multiplied:
`scales` puts their mean back.
"""

from collections.abc import Mapping
import re
from typing import Any, Literal

import numpy as np

from upcycle import expert_init, surgery, trees

Choice = int | Literal['mean']

RULES: surgery.Rules = (
  (r'(.*)', 'copied', r'\1'),
  (r'(.*/mlp)/(.*)', 'merged', r'\1/expert/\2'),
  (r'(.*)/MlpBlock_0/(.*)', 'merged', r'\1/Moe/Mlp/\2'),
)
# What is dropped where the target has no such parameter.
_ROUTER = re.compile(r'.*/(mlp/router|Moe/Router)/.*')


def downcycle(
  sparse: trees.Tree,
  dense: trees.Tree,
  *,
  choose: Choice,
  scales: Mapping[str, float] | None = None,
) -> dict[str, Any]:
  """The parameters of the dense model, lazy where those of the sparse one are.

  Args:
    sparse: the source's parameters: arrays or lazy arrays.
    dense: shapes and dtypes of the target's.
    choose: the number of the expert that is kept, from 0, or 'mean' of all.
    scales: factors of the outputs by the path of an MoE layer, see
      `receipt.scales`; None: 1.

  Returns:
    The target's parameters.

  Raises:
    ValueError: the trees do not fit, see `surgery.origins`; layers have fewer
      experts, or scales are none of its layers; all are listed.
  """
  have, want = trees.flatten(kept(sparse, dense)), trees.flatten(dense)
  found = surgery.origins(trees.unflatten(have), dense, RULES)
  merged = {p: o for p, o in found.items() if o.kind == 'merged'}
  layers = {_layer(o): have[o.source].shape[0] for o in merged.values()}
  _check(layers, choose, scales or {})

  def make(path: str, origin: surgery.Origin) -> Any:
    def build(leaf: Any) -> Any:
      leaf = np.asarray(leaf)
      if origin.kind == 'merged':
        leaf = _merge(leaf, choose)
        if scales and expert_init.OUT.fullmatch(origin.name):
          leaf = leaf * np.float32(scales.get(_layer(origin), 1.0))
      return leaf.astype(want[path].dtype, copy=False)

    return trees.lazily(build, have[origin.source], want[path])

  return trees.unflatten({path: make(path, o) for path, o in found.items()})


def kept(sparse: trees.Tree, dense: trees.Tree) -> dict[str, Any]:
  """The sparse model's parameters without the routers that go."""
  want = trees.flatten(dense)
  return trees.unflatten(
    {
      path: leaf
      for path, leaf in trees.flatten(sparse).items()
      if path in want or not _ROUTER.fullmatch(path)
    }
  )


def _merge(experts: np.ndarray, choose: Choice) -> np.ndarray:
  if choose == 'mean':
    # In float64 the mean of copies is the copy, of whatever number.
    return experts.mean(axis=0, dtype=np.float64).astype(experts.dtype)
  return experts[choose]


def _layer(origin: surgery.Origin) -> str:
  """The path of the MoE layer that a merged parameter is from."""
  return origin.source.removesuffix(f'/{origin.name}').rpartition('/')[0]


def _check(
  layers: Mapping[str, int], choose: Choice, scales: Mapping[str, float]
) -> None:
  if not layers:
    raise ValueError('There is no MoE layer to make dense: it is dense.')
  few = [
    f'{path} has {n}'
    for path, n in layers.items()
    if choose != 'mean' and choose not in range(n)
  ]
  if few:
    raise ValueError(
      f"The choice of an expert is 'mean' or its number from 0, not "
      f'{choose!r}: {", ".join(few)} experts.'
    )
  unknown = sorted(scales.keys() - layers.keys())
  if unknown:
    raise ValueError(
      f'Scales of {", ".join(unknown)}, which are none of the MoE layers '
      f'{", ".join(layers)}.'
    )
