# SPDX-License-Identifier: Apache-2.0
"""Operations of a program's matrix products, counted before it is compiled.

The compiler's own count is of one device, counts a loop's body once and all
elementwise operations too. This one is of all devices and repeats loops, and is
of products alone: the two check each other.
"""

from collections.abc import Iterator
import math
from typing import Any

import jax
from jax.extend import core


def matmuls(jaxpr: Any) -> int:
  """Operations of all matrix products, multiplications and additions.

  Of a branch, the dearest is counted; of a loop without a known length, one
  turn. Convolutions are not counted: the models have none.

  Args:
    jaxpr: of a whole program, before it is split over devices.
  """
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    lhs = equation.invars[0].aval.shape
    depth = math.prod(lhs[axis] for axis in contracted)
    return 2 * depth * math.prod(equation.outvars[0].aval.shape)
  if name.startswith('ragged_dot'):
    rows, depth = equation.invars[0].aval.shape[-2:]
    return 2 * rows * depth * equation.invars[1].aval.shape[-1]
  inner = [matmuls(jaxpr) for jaxpr in _inside(params)]
  if name == 'cond':
    return max(inner, default=0)
  return _repeats(name, params) * sum(inner)


def _repeats(name: str, params: dict[str, Any]) -> int:
  """A loop's turns; of what each device does for itself, their number."""
  if name == 'shard_map':
    sizes = params['mesh'].shape
    return math.prod(sizes[axis] for axis in params['newly_manual_axes'])
  return params['length'] if name == 'scan' else 1


def _inside(params: dict[str, Any]) -> Iterator[Any]:
  for leaf in jax.tree.leaves(
    list(params.values()),
    is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
  ):
    if isinstance(leaf, core.ClosedJaxpr):
      yield leaf.jaxpr
    elif isinstance(leaf, core.Jaxpr):
      yield leaf
