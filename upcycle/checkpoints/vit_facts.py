# SPDX-License-Identifier: Apache-2.0
"""What a ViT's parameters tell of the model, and whether they are all there."""

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any

import numpy as np

from upcycle import trees
from upcycle.checkpoints.vit_shapes import ATTENTION, POSITIONS, shapes

_BLOCK = r'Transformer/encoderblock_(\d+)'
_ROUTER = f'{_BLOCK}/Moe/Router/dense/kernel'
# What is read off the first array of a kind: its pattern, how many axes it has.
_TELLING = {
  'embedding/kernel [P,P,C,M]': ('embedding/kernel', (4,)),
  f'encoderblock_i/{ATTENTION}/query/kernel [M,H,D]': (
    f'{_BLOCK}/{ATTENTION}/query/kernel',
    (3,),
  ),
  'encoderblock_i/MlpBlock_0/Dense_0/kernel [M,F]': (
    f'{_BLOCK}/(?:MlpBlock_0|Moe/Mlp)/Dense_0/kernel',
    (2, 3),
  ),
}


def check(
  params: Mapping[str, Any], where: str, problems: Sequence[str] = ()
) -> dict[str, Any]:
  """The facts of a ViT that is whole and has no other parameters.

  Args:
    params: flat.
    where: begins the message.
    problems: others that are known already.

  Raises:
    ValueError: there are problems; lists all of them.
  """
  model, found = facts(params)
  found = [*problems, *found, *(misfits(params, model) if model else ())]
  if found:
    raise ValueError('\n  '.join([f'{where}:', *found]))
  return model


def facts(params: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """The arguments of a `ViTConfig` that names and shapes tell.

  The size of the images is not among them where positions are fixed.

  Args:
    params: flat.

  Returns:
    The arguments, or none and a line for each array that stands against it.
  """
  telling = {
    name: (_first(pattern, params), axes)
    for name, (pattern, axes) in _TELLING.items()
  }
  wrong = [
    f'missing: {name}'
    for name, (shape, axes) in telling.items()
    if len(shape) not in axes
  ]
  tokens = _first(POSITIONS, params)
  patches = tokens[1] - ('cls' in params) if len(tokens) == 3 else 0
  if POSITIONS in params and not is_square(patches):
    wrong.append(f'no square of patches: {POSITIONS} {list(tokens)}')
  if wrong:
    return {}, wrong
  (size, _, channels, width), (_, heads, _), mlp = (
    shape for shape, _ in telling.values()
  )
  blocks = (re.match(f'{_BLOCK}/', path) for path in params)
  model = {
    'image_size': size * math.isqrt(patches),
    'patch_size': size,
    'channels': channels,
    'width': width,
    'depth': max(int(block[1]) for block in blocks if block) + 1,
    'mlp_dim': mlp[-1],
    'num_heads': heads,
    'pool_type': _pool_type(params),
    'representation_size': (_first('pre_logits/kernel', params) or (None,))[-1],
    'num_classes': (_first('head/kernel', params) or (None,))[-1],
    'positions': 'learned' if POSITIONS in params else 'sincos2d',
    'qk_norm': bool(_first(f'.*/{ATTENTION}/query_ln/scale', params)),
  }
  if POSITIONS not in params:
    del model['image_size']
  return model, []


def is_square(n: int) -> bool:
  return n > 0 and math.isqrt(n) ** 2 == n


def _first(pattern: str, params: Mapping[str, Any]) -> tuple[int, ...]:
  """The shape of the first parameter that is named so; () if there is none."""
  paths = (path for path in params if re.fullmatch(pattern, path))
  return next((tuple(params[path].shape) for path in paths), ())


def _pool_type(params: Mapping[str, Any]) -> str:
  if 'cls' in params:
    return 'tok'
  return 'map' if 'MAPHead_0/probe' in params else 'gap'


def misfits(params: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
  """A line for each parameter that is missing, of another shape, or too many.

  Args:
    params: flat; a block is sparse where it has a router.
    model: the arguments of a `ViTConfig`, at least those of `facts`.
  """
  routers = ((re.fullmatch(_ROUTER, p), x) for p, x in params.items())
  experts = {
    int(found[1]): x.shape[-1] for found, x in routers if found and x.shape
  }
  # Shapes that take no memory.
  expected = {
    path: np.broadcast_to(np.float32(0), shape)
    for path, shape in shapes(model, experts).items()
  }
  return trees.diff(expected, params)
