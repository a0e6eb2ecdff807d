# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's ViT: its names, layout and configuration in our terms."""

from collections.abc import Mapping
import math
from typing import Any

from upcycle.checkpoints import naming, vit_facts, vit_shapes
from upcycle.checkpoints.arrays import LazyArray

# A ViTModel has no prefix; a block is named so since transformers 5 in memory.
_PREFIX = r'(?:vit\.)?'
_BLOCK = rf'{_PREFIX}(?:encoder\.layer|layers)\.(\d+)'
_OURS = r'Transformer/encoderblock_\1'


def _layer(source: str, target: str) -> tuple[tuple[str, str], ...]:
  return (
    (rf'{source}\.weight', f'{target}/kernel'),
    (rf'{source}\.bias', f'{target}/bias'),
  )


def _norm(source: str, target: str) -> tuple[tuple[str, str], ...]:
  return (
    (rf'{source}\.weight', f'{target}/scale'),
    (rf'{source}\.bias', f'{target}/bias'),
  )


def _projection(name: str) -> tuple[tuple[str, str], ...]:
  return _layer(
    rf'{_BLOCK}\.attention\.(?:attention\.{name}|{name[0]}_proj)',
    f'{_OURS}/{vit_shapes.ATTENTION}/{name}',
  )


_EMBEDDINGS = rf'{_PREFIX}embeddings'
_RULES = (
  (rf'{_EMBEDDINGS}\.cls_token', 'cls'),
  (rf'{_EMBEDDINGS}\.position_embeddings', vit_shapes.POSITIONS),
  # For masked images, and for features that are no classifier's.
  (rf'{_EMBEDDINGS}\.mask_token', naming.UNUSED),
  (rf'{_PREFIX}pooler\.dense\.(?:weight|bias)', naming.UNUSED),
  *_layer(rf'{_EMBEDDINGS}\.patch_embeddings\.projection', 'embedding'),
  *_projection('query'),
  *_projection('key'),
  *_projection('value'),
  *_layer(
    rf'{_BLOCK}\.attention\.(?:output\.dense|o_proj)',
    f'{_OURS}/{vit_shapes.ATTENTION}/out',
  ),
  *_layer(
    rf'{_BLOCK}\.(?:intermediate\.dense|mlp\.fc1)',
    f'{_OURS}/MlpBlock_0/Dense_0',
  ),
  *_layer(
    rf'{_BLOCK}\.(?:output\.dense|mlp\.fc2)', f'{_OURS}/MlpBlock_0/Dense_1'
  ),
  *_norm(rf'{_BLOCK}\.layernorm_before', f'{_OURS}/LayerNorm_0'),
  *_norm(rf'{_BLOCK}\.layernorm_after', f'{_OURS}/LayerNorm_1'),
  *_norm(rf'{_PREFIX}layernorm', 'Transformer/encoder_norm'),
  *_layer('classifier', 'head'),
)
# Our name of a fact, theirs, and the default that a config may leave out.
_FACTS = (
  ('image_size', 'image_size', 224),
  ('patch_size', 'patch_size', 16),
  ('channels', 'num_channels', 3),
  ('width', 'hidden_size', 768),
  ('depth', 'num_hidden_layers', 12),
  ('mlp_dim', 'intermediate_size', 3072),
  ('num_heads', 'num_attention_heads', 12),
  ('norm_epsilon', 'layer_norm_eps', 1e-12),
)
_ACTIVATIONS = {
  'gelu': 'gelu_exact',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
}
# A Linear is stored as outputs, inputs; a convolution as OIHW.
_TURNED = {2: (1, 0), 4: (2, 3, 1, 0)}


def convert(
  config: Mapping[str, Any], tensors: Mapping[str, LazyArray], where: str
) -> tuple[dict[str, LazyArray], dict[str, Any]]:
  """The parameters by path, and the arguments of a `ViTConfig`.

  Args:
    config: of a ViTForImageClassification or a ViTModel.
    tensors: by the names of transformers 4 or 5.
    where: the folder, for messages.

  Raises:
    ValueError: the config describes another model, or tensors have unknown
      names, other shapes than it says, or are missing; lists all of them.
  """
  facts = _facts(config, where)
  params = naming.rename_all(tensors, _RULES, where)
  if 'head/kernel' in params:
    facts['num_classes'] = params['head/kernel'].shape[0]
  shapes = vit_shapes.shapes(facts)
  params = {
    path: _ours(leaf, shapes.get(path)) for path, leaf in params.items()
  }
  problems = vit_facts.misfits(params, facts)
  if problems:
    raise ValueError(
      f'{where} holds tensors that do not fit its config.json:\n  '
      + '\n  '.join(problems)
    )
  return params, facts


def _facts(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  facts = {ours: config.get(theirs, value) for ours, theirs, value in _FACTS}
  activation = config.get('hidden_act', 'gelu')
  wrong = [
    f'{theirs}={facts[ours]}'
    for ours, theirs, _ in _FACTS
    if not isinstance(facts[ours], int | float)
  ]
  if activation not in _ACTIVATIONS:
    wrong.append(f'hidden_act={activation}')
  if not config.get('qkv_bias', True):
    wrong.append('qkv_bias=False')
  if wrong:
    raise ValueError(
      f'{where} describes a ViT that this code has no model for: '
      f'{", ".join(wrong)}.'
    )
  return facts | {
    'activation': _ACTIVATIONS[activation],
    'pool_type': 'tok',
    'representation_size': None,
    'num_classes': None,
    'positions': 'learned',
    'qk_norm': False,
  }


def _ours(leaf: LazyArray, shape: tuple[int, ...] | None) -> LazyArray:
  """Inputs before outputs, and in attention the heads on an axis of theirs.

  Args:
    leaf: as PyTorch stores it.
    shape: what our model has in its place, None if nothing.
  """
  axes = _TURNED.get(leaf.ndim, tuple(range(leaf.ndim)))
  target = tuple(leaf.shape[axis] for axis in axes)
  # Only [M,M] and [M] have heads to split: other shapes are not forced to fit.
  if shape and len(shape) > leaf.ndim and target == (target[0],) * leaf.ndim:
    target = shape if math.prod(shape) == leaf.size else target
  return LazyArray(
    target,
    leaf.dtype,
    lambda: leaf.read().transpose(axes).reshape(target),
  )
