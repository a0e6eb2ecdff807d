# SPDX-License-Identifier: Apache-2.0
"""A checkpoint made ready for a model with other layers, head or resolution."""

from collections.abc import Iterable, Mapping
import dataclasses
import re
from typing import Any

import numpy as np

from upcycle import checkpoints, depth, positions, surgery, trees

_POSITIONS = re.compile(r'(.*/)?pos_embedding')
_RESIZE = (
  'Position embeddings of another resolution are resized by '
  'InitFrom.resize_positions = True.'
)
_REPLACE = (
  "A head of other classes is made anew by InitFrom.replace = ('head/.*',)."
)
_DEPTH = (
  'A deeper model is made of repeated layers by '
  'InitFrom.depth_tile = @depth.stretched.'
)


def adapt(
  source: checkpoints.Checkpoint,
  shapes: trees.Tree,
  replace: tuple[str, ...] = (),
  resize_positions: bool = False,
  depth_tile: depth.Order | None = None,
) -> tuple[checkpoints.Checkpoint, surgery.Rules, surgery.Rules]:
  """The checkpoint without what is not taken from it, and rules to match.

  Args:
    source: as read.
    shapes: of the model's parameters.
    replace: regexes of whole paths: parameters that the model, if it has them,
      makes anew.
    resize_positions: resizes position embeddings of other shapes.
    depth_tile: which of the source's layers a layer is made of; None: itself.

  Returns:
    The checkpoint, surgery's rules for its parameters, and those for its
    optimizer slots; the slots of what is new or resized start anew.

  Raises:
    ValueError: a regex matches nothing, positions cannot be resized, the model
      has fewer layers than are to be repeated, or the checkpoint does not fit
      the model, see `surgery.origins`.
  """
  have, want = trees.flatten(source.params), trees.flatten(shapes)
  _check_used(replace, [*have, *want])
  params = {p: x for p, x in have.items() if not _matches(p, replace)}
  other = _other_positions(params, want)
  if resize_positions:
    params |= {p: _resized(params[p], want[p].shape[1]) for p in other}
  layers = {}
  if depth_tile is not None:
    layers = depth.sources(source.params, shapes, depth_tile)
  rules = depth.rules(_fresh(replace) + surgery.RULES, layers)
  try:
    surgery.origins(trees.unflatten(params), shapes, rules)
  except ValueError as error:
    rows = [(params[p].shape[1], want[p].shape[1]) for p in other]
    helps = rows and not resize_positions and all(map(_resizable, rows))
    hints = [_RESIZE] if helps else []
    hints += [_REPLACE] if ': head/' in str(error) else []
    hints += [_DEPTH] if not layers and _is_deeper(shapes, source) else []
    raise ValueError('\n'.join([str(error), *hints])) from None
  new = [*replace, *map(re.escape, other)]
  slots = trees.flatten(source.opt_state or {})
  kept = {p: x for p, x in slots.items() if not _matches(_param(p), new)}
  adapted = dataclasses.replace(
    source,
    params=trees.unflatten(params),
    opt_state=trees.unflatten(kept) or None,
  )
  slot_rules = _fresh(rf'(?:{r})/\w+' for r in new) + surgery.RULES
  return adapted, rules, depth.rules(slot_rules, layers)


def _is_deeper(shapes: trees.Tree, source: checkpoints.Checkpoint) -> bool:
  have, want = depth.depths(source.params), depth.depths(shapes)
  return any(want[stack] > n for stack, n in have.items() if stack in want)


def _fresh(regexes: Iterable[str]) -> surgery.Rules:
  return tuple((regex, 'fresh', None) for regex in regexes)


def _param(slot: str) -> str:
  return slot.rpartition('/')[0]


def _matches(path: str, regexes: Iterable[str]) -> bool:
  return any(re.fullmatch(regex, path) for regex in regexes)


def _check_used(regexes: tuple[str, ...], paths: list[str]) -> None:
  idle = [r for r in regexes if not any(_matches(p, [r]) for p in paths)]
  if idle:
    raise ValueError(
      'InitFrom.replace has regexes that match no parameter of the checkpoint '
      f'or the model: {idle}. They match whole paths, such as head/kernel.'
    )


def _other_positions(
  have: Mapping[str, Any], want: Mapping[str, Any]
) -> list[str]:
  """Position embeddings that both have, with different numbers of rows."""
  return [
    path
    for path in have
    if _POSITIONS.fullmatch(path)
    and path in want
    and have[path].shape[:2] != want[path].shape[:2]
  ]


def _resizable(rows: tuple[int, int]) -> bool:
  try:
    return bool(positions.grids(*rows))
  except ValueError:
    return False


def _resized(leaf: Any, rows: int) -> trees.LazyArray:
  positions.grids(leaf.shape[1], rows)  # refuses before anything is read
  return trees.LazyArray(
    (1, rows, leaf.shape[2]),
    np.dtype(leaf.dtype),
    lambda: positions.resize(np.asarray(leaf), rows),
  )
