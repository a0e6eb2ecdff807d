# SPDX-License-Identifier: Apache-2.0
"""One view of every optimizer's state: slots under the paths of parameters.

Adafactor's `v`, `v_row`, `v_col` and `m`, Adam's `mu` and `nu`, the `trace` of
SGD: {parameter: {slot: array}}, wherever the state keeps them in tuples of
optax.chain, in memory or as saved. Beside the parameters stands Adam's `count`
of the updates that its moments hold, by which it corrects their bias.
"""

from collections.abc import Mapping
import re
from typing import Any

import jax

from upcycle import trees

# From a state's paths to the view's: of our Adafactor, then of optax's states.
_RULES = (
  (r'(?:\d+/)*slots/(.*)', r'\1'),
  (r'(?:\d+/)*(mu|nu|trace|ema|v|v_row|v_col)/(.*)', r'\2/\1'),
)
# What has first moments has a count of its own; schedules count steps.
_FIRST_MOMENT = re.compile(r'((?:\d+/)*)mu/.*')


def get(opt_state: Any) -> dict[str, Any]:
  """The slots of an optimizer's state, or of its saved tree.

  Args:
    opt_state: leaves have shapes. optax.adafactor's placeholders of shape (1,)
      are no slots.

  Returns:
    Nested dict: a parameter's path, then its slots; empty if there are none.

  Raises:
    ValueError: two parts of the state have a slot of the same name.
  """
  leaves = by_path(opt_state)
  names = _names(leaves)
  return trees.unflatten({names[path]: leaves[path] for path in names})


def replace(opt_state: Any, slots: trees.Tree) -> Any:
  """The state with other slots; what the view does not show stays.

  Raises:
    ValueError: a slot that the state does not have; all are listed.
  """
  leaves, new = by_path(opt_state), trees.flatten(slots)
  names = _names(leaves)
  unknown = sorted(new.keys() - set(names.values()))
  if unknown:
    raise ValueError(f'Slots that the optimizer does not have: {unknown}.')
  leaves |= {path: new[name] for path, name in names.items() if name in new}
  return jax.tree.unflatten(jax.tree.structure(opt_state), leaves.values())


def kinds(slots: trees.Tree) -> set[str]:
  """Names of slots, such as {'mu', 'nu', 'count'}."""
  return {path.rsplit('/', 1)[-1] for path in trees.flatten(slots)}


def by_path(tree: Any) -> dict[str, Any]:
  """Leaves of any pytree under 'a/b/c' paths, in the order of its leaves."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }


def _names(leaves: Mapping[str, Any]) -> dict[str, str]:
  """Paths of a state to those of the view, for all that are in the view."""
  names = {path: trees.rename(path, _RULES) for path in leaves}
  firsts = filter(None, map(_FIRST_MOMENT.fullmatch, leaves))
  names |= {f'{first[1]}count': 'count' for first in firsts}
  names = {path: names[path] for path in leaves if names[path]}
  shapes = {name: tuple(leaves[path].shape) for path, name in names.items()}
  if len(shapes) < len(names):
    raise ValueError(
      'Two parts of the optimizer state have slots of the same names: '
      f'{sorted(kinds(shapes))}.'
    )
  return {p: name for p, name in names.items() if not _is_unused(name, shapes)}


def _is_unused(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
  """optax.adafactor has `v` and `v_row`, one of them of shape (1,)."""
  param, _, slot = name.rpartition('/')
  row = shapes.get(f'{param}/v_row')
  if row is None or shapes[name] != (1,):
    return False
  return slot in ('v_row', 'v_col') if row == (1,) else slot == 'v'
