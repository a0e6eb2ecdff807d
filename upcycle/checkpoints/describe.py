# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in words, and two of them compared leaf by leaf."""

from collections.abc import Iterator
import math
import re
from typing import Any

import numpy as np

from upcycle import trees
from upcycle.checkpoints.arrays import Checkpoint

_EXPERT = re.compile(r'(?:.*/)?(?:mlp/expert|Moe/Mlp)/.*')


def describe(checkpoint: Checkpoint, *, values: bool = False) -> str:
  """Format, step, model, then a line an array and the totals.

  Args:
    checkpoint: as read.
    values: reads every array, for its mean, deviation and range.
  """
  params = trees.flatten(checkpoint.params)
  slots = trees.flatten(checkpoint.opt_state or {})
  facts = {k: v for k, v in checkpoint.metadata.items() if k != 'model'}
  model = checkpoint.metadata.get('model', {})
  return '\n'.join(
    [
      *(f'{key}: {value}' for key, value in facts.items()),
      *([] if 'step' in facts else [f'step: {checkpoint.step}']),
      'model: '
      + (', '.join(f'{k}={v}' for k, v in model.items()) or 'unknown'),
      '',
      *_table(params, values),
      '',
      _totals(params),
      _slot_totals(slots),
    ]
  )


def _table(params: dict[str, Any], values: bool) -> Iterator[str]:
  width = max(map(len, params), default=0)
  for path, leaf in params.items():
    kind = f'{leaf.dtype!s:9}{list(leaf.shape)}'
    numbers = _numbers(leaf) if values else ''
    yield f'{path:{width}}  {kind:24}{numbers}'.rstrip()


def _numbers(leaf: Any) -> str:
  x = np.asarray(leaf).astype(np.float32)
  return (
    f'  mean {x.mean():+.3e}  std {x.std():.3e}'
    f'  min {x.min():+.3e}  max {x.max():+.3e}'
  )


def _count(leaves: dict[str, Any]) -> int:
  return sum(math.prod(x.shape) for x in leaves.values())


def _totals(params: dict[str, Any]) -> str:
  experts = {p: x for p, x in params.items() if _EXPERT.fullmatch(p)}
  sizes = sorted({x.shape[0] for x in experts.values()})
  nbytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in params.values())
  line = (
    f'{_count(params):,} parameters in {len(params)} arrays, {nbytes:,} bytes'
  )
  if not experts:
    return f'{line}; no experts'
  layers = {p.split('/expert/')[0].split('/Mlp/')[0] for p in experts}
  return (
    f'{line}; {_count(experts):,} of them in the experts of {len(layers)} '
    f'layers ({" or ".join(map(str, sizes))} experts a layer)'
  )


def _slot_totals(slots: dict[str, Any]) -> str:
  kinds: dict[str, int] = {}
  for path in slots:
    kind = path.rsplit('/', 1)[-1]
    kinds[kind] = kinds.get(kind, 0) + 1
  counts = ', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))
  return f'optimizer slots: {counts or "none"}'


def differences(
  here: Checkpoint, there: Checkpoint, *, values: bool = False
) -> list[str]:
  """Every difference of two checkpoints, one line each; the step is none.

  Optimizer slots are compared where both have some.

  Args:
    here: one checkpoint.
    there: the other.
    values: reads arrays of equal shape, one pair at a time, and gives the
      largest absolute difference where there is any.
  """
  lines = _differences(here.params, there.params, values)
  if here.opt_state is None or there.opt_state is None:
    return lines
  slots = _differences(here.opt_state, there.opt_state, values)
  return lines + [f'optimizer: {line}' for line in slots]


def _differences(here: trees.Tree, there: trees.Tree, values) -> list[str]:
  a, b, lines = trees.flatten(here), trees.flatten(there), []
  for path in sorted(a.keys() | b.keys()):
    if path not in b:
      lines.append(f'only here:  {path} {trees.describe(a[path])}')
    elif path not in a:
      lines.append(f'only there: {path} {trees.describe(b[path])}')
    else:
      lines += _leaf_differences(path, a[path], b[path], values)
  return lines


def _leaf_differences(path: str, a: Any, b: Any, values: bool) -> list[str]:
  lines = []
  if (a.shape, a.dtype) != (b.shape, b.dtype):
    both = f'{trees.describe(a)} here, {trees.describe(b)} there'
    lines.append(f'differs:    {path} is {both}')
  if values and a.shape == b.shape:
    x, y = np.asarray(a, np.float32), np.asarray(b, np.float32)
    if not np.array_equal(x, y, equal_nan=True):
      gap = np.abs(x - y).max()
      lines.append(f'values:     {path} differ by up to {gap:.3e}')
  return lines
