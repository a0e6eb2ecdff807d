# SPDX-License-Identifier: Apache-2.0
"""Depth tiling: the layers of a deeper model from those of a shallower one.

Dense upcycling (Gopher, Rae et al. 2021, appendix G.3; Sparse Upcycling, figure
5). What is no layer is taken as it is: last norms, and T5's position biases,
which all layers of a stack share. An order says which layer a layer is made of.
Which one the papers took we could not read: that it is `stretched` where none
is given is our choice.
"""

from collections.abc import Callable
import re
from typing import Any

from upcycle import trees

Order = Callable[[int, int], tuple[int, ...]]

# A stack, the number of a layer, and what is in it.
_LAYER = re.compile(r'((?:.*/)?(?:layers|encoderblock))_(\d+)(/.*)')


def stretched(old: int, new: int) -> tuple[int, ...]:
  """Every layer repeated in place, 0 0 1 1 2 2: floor(i * old / new)."""
  return tuple(i * old // new for i in range(new))


def repeated(old: int, new: int) -> tuple[int, ...]:
  """The whole stack repeated, 0 1 2 0 1 2: i mod old."""
  return tuple(i % old for i in range(new))


def depths(tree: trees.Tree) -> dict[str, int]:
  """How many layers the stacks of a model have: {'encoder/layers': 12}."""
  found: dict[str, int] = {}
  for match in filter(None, map(_LAYER.fullmatch, trees.flatten(tree))):
    found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
  return found


def sources(
  source: trees.Tree, target: trees.Tree, order: Order
) -> dict[str, tuple[int, ...]]:
  """The source's layer of each of the target's layers, by stack.

  Args:
    source: its parameters, or their shapes.
    target: its parameters, or their shapes.
    order: from numbers of layers, the source's and the target's.

  Raises:
    ValueError: the target has fewer layers; all such stacks are listed.
  """
  have, want = depths(source), depths(target)
  both = [stack for stack in want if stack in have]
  fewer = [
    f'{stack} has {want[stack]} layers, {have[stack]} in the checkpoint'
    for stack in both
    if want[stack] < have[stack]
  ]
  if fewer:
    raise ValueError(
      'Depth tiling makes models of as many layers or more: '
      f'{"; ".join(fewer)}. Take a deeper model.'
    )
  return {stack: order(have[stack], want[stack]) for stack in both}


def rules(
  rules: tuple[tuple[str, str, str | None], ...],
  layers: dict[str, tuple[int, ...]],
) -> tuple[tuple[str, str, Any], ...]:
  """Rules of surgery whose sources are in other layers.

  Args:
    rules: of models of one depth, see `surgery.RULES`.
    layers: see `sources`; without any the rules are the same.
  """
  if not layers:
    return rules

  def move(path: str) -> str:
    match = _LAYER.fullmatch(path)
    if not match or match[1] not in layers:
      return path
    stack, number, rest = match.groups()
    return f'{stack}_{layers[stack][int(number)]}{rest}'

  def moved(template: str | None) -> Callable[[re.Match], str] | None:
    return template and (lambda match: move(match.expand(template)))

  return tuple((rule, kind, moved(template)) for rule, kind, template in rules)


def receipt(
  source: trees.Tree, target: trees.Tree, order: Order | None
) -> dict[str, Any]:
  """`depth_tile`: the order's name, and `sources`; nothing without an order."""
  if order is None:
    return {}
  layers = sources(source, target, order)
  name = getattr(order, '__name__', repr(order))
  return {'depth_tile': {'order': name, 'layers': layers}}
