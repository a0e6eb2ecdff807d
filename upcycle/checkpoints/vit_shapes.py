# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of a ViT's parameters, and what they tell of the model."""

from collections.abc import Mapping
import math
import re
from typing import Any

import numpy as np

from upcycle import trees

ATTENTION = 'MultiHeadDotProductAttention_0'
POSITIONS = 'Transformer/posembed_input/pos_embedding'
Shapes = dict[str, tuple[int, ...]]
_BLOCK = r'Transformer/encoderblock_(\d+)'
_ROUTER = f'{_BLOCK}/Moe/Router/dense/kernel'
# What is read off an array of each kind, and the number of its axes.
_TELLING = {
  'embedding/kernel': (4,),
  f'{_BLOCK}/{ATTENTION}/query/kernel': (3,),
  f'{_BLOCK}/(?:MlpBlock_0|Moe/Mlp)/Dense_0/kernel': (2, 3),
}


def facts(params: Mapping[str, Any]) -> dict[str, Any]:
  """The arguments of a `ViTConfig` that names and shapes tell.

  The size of the images is not among them where positions are fixed.

  Args:
    params: flat.

  Raises:
    ValueError: arrays that tell sizes are missing or have other axes, or the
      positions are those of no square; lists all of them.
  """
  shapes = {pattern: _first(pattern, params) for pattern in _TELLING}
  wrong = [
    f'no array named {pattern.replace(_BLOCK, "Transformer/encoderblock_i")} '
    f'with {" or ".join(map(str, ranks))} axes'
    for pattern, ranks in _TELLING.items()
    if len(shapes[pattern]) not in ranks
  ]
  tokens = _first(POSITIONS, params)
  patches = tokens[1] - ('cls' in params) if len(tokens) == 3 else 0
  if POSITIONS in params and not is_square(patches):
    wrong.append(f'{POSITIONS} {list(tokens)} is for no square of patches')
  if wrong:
    raise ValueError('This is no ViT:\n  ' + '\n  '.join(wrong))
  (size, _, channels, width), (_, heads, _), mlp = shapes.values()
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
  return {k: v for k, v in model.items() if (k, v) != ('image_size', 0)}


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


def problems(params: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
  """A line for each parameter that does not fit: missing, unknown, misshapen.

  Args:
    params: flat; a block is sparse where it has a router.
    model: the arguments of a `ViTConfig`, at least those of `facts`.
  """
  routers = ((re.fullmatch(_ROUTER, p), x) for p, x in params.items())
  experts = {int(found[1]): x.shape[-1] for found, x in routers if found}
  # Shapes that take no memory.
  expected = {
    path: np.broadcast_to(np.float32(0), shape)
    for path, shape in shapes(model, experts).items()
  }
  return trees.diff(expected, params)


def shapes(
  model: Mapping[str, Any], experts: Mapping[int, int] | None = None
) -> Shapes:
  """Every parameter's shape by path, in the order of computation.

  Args:
    model: the arguments of a `ViTConfig`, at least those of `facts`.
    experts: the number of experts of each sparse block.
  """
  M, size, pool = model['width'], model['patch_size'], model['pool_type']
  out = _dense('embedding', (size, size, model['channels']), (M,))
  if pool == 'tok':
    out['cls'] = (1, 1, M)
  if model['positions'] == 'learned':
    patches = (model['image_size'] // size) ** 2
    out[POSITIONS] = (1, patches + (pool == 'tok'), M)
  for i in range(model['depth']):
    out |= _block(
      f'Transformer/encoderblock_{i}', model, (experts or {}).get(i)
    )
  out |= _norm('Transformer/encoder_norm', M)
  if pool == 'map':
    out['MAPHead_0/probe'] = (1, 1, M)
    out |= _attention(f'MAPHead_0/{ATTENTION}', model)
    out |= _norm('MAPHead_0/LayerNorm_0', M)
    out |= _mlp('MAPHead_0/MlpBlock_0', model)
  for layer in ('representation_size', 'num_classes'):
    if (outputs := model[layer]) is not None:
      name = 'head' if layer == 'num_classes' else 'pre_logits'
      inputs = model['representation_size'] or M if name == 'head' else M
      out |= _dense(name, (inputs,), (outputs,))
  return out


def _block(name: str, model: Mapping[str, Any], experts: int | None) -> Shapes:
  M = model['width']
  if experts is None:
    mlp = _mlp(f'{name}/MlpBlock_0', model)
  else:
    mlp = _mlp(f'{name}/Moe/Mlp', model, (experts,))
    mlp[f'{name}/Moe/Router/dense/kernel'] = (M, experts)
  return {
    **_norm(f'{name}/LayerNorm_0', M),
    **_attention(f'{name}/{ATTENTION}', model),
    **_norm(f'{name}/LayerNorm_1', M),
    **mlp,
  }


def _attention(name: str, model: Mapping[str, Any]) -> Shapes:
  M, H = model['width'], model['num_heads']
  D = M // H
  out = {}
  for projection in ('query', 'key', 'value'):
    out |= _dense(f'{name}/{projection}', (M,), (H, D))
  if model['qk_norm']:
    out |= {f'{name}/{x}_ln/scale': (D,) for x in ('query', 'key')}
  return out | _dense(f'{name}/out', (H, D), (M,))


def _mlp(
  name: str, model: Mapping[str, Any], experts: tuple[int, ...] = ()
) -> Shapes:
  M, F = model['width'], model['mlp_dim']
  first = _dense(f'{name}/Dense_0', (M,), (F,), experts)
  return first | _dense(f'{name}/Dense_1', (F,), (M,), experts)


def _dense(
  name: str,
  inputs: tuple[int, ...],
  outputs: tuple[int, ...],
  experts: tuple[int, ...] = (),
) -> Shapes:
  return {
    f'{name}/kernel': (*experts, *inputs, *outputs),
    f'{name}/bias': (*experts, *outputs),
  }


def _norm(name: str, width: int) -> Shapes:
  return {f'{name}/{x}': (width,) for x in ('scale', 'bias')}
