# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of a ViT's parameters."""

from collections.abc import Mapping
from typing import Any

ATTENTION = 'MultiHeadDotProductAttention_0'
POSITIONS = 'Transformer/posembed_input/pos_embedding'
Shapes = dict[str, tuple[int, ...]]


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
  features = M
  if (outputs := model['representation_size']) is not None:
    out |= _dense('pre_logits', (M,), (outputs,))
    features = outputs
  if (outputs := model['num_classes']) is not None:
    out |= _dense('head', (features,), (outputs,))
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
