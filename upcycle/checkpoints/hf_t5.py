# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's T5: its names, layout and configuration in our terms."""

from collections.abc import Mapping
import re
from typing import Any

import numpy as np

from upcycle.checkpoints import naming
from upcycle.checkpoints.arrays import LazyArray

_EMBEDDING = 'shared.weight'
_TRANSPOSED = re.compile(r'.*/(kernel|rel_embedding)')


def _attention(source: str, target: str) -> tuple[tuple[str, str], ...]:
  """Rules of the four projections of one attention."""
  names = {'q': 'query', 'k': 'key', 'v': 'value', 'o': 'out'}
  return tuple(
    (rf'{source}\.{q}\.weight', f'{target}/{name}/kernel')
    for q, name in names.items()
  )


_BLOCK = r'(encoder|decoder)\.block\.(\d+)\.layer'
_ENCODER = r'(encoder)\.block\.(\d+)\.layer'
_DECODER = r'(decoder)\.block\.(\d+)\.layer'
_LAYER = r'\1/layers_\2'

_RULES = (
  (r'shared\.weight', 'token_embedder/embedding'),
  (r'lm_head\.weight', 'decoder/logits_dense/kernel'),
  (r'(encoder|decoder)\.final_layer_norm\.weight', r'\1/\1_norm/scale'),
  (
    r'(encoder|decoder)\.block\.0\.layer\.0\.SelfAttention'
    r'\.relative_attention_bias\.weight',
    r'\1/relpos_bias/rel_embedding',
  ),
  # The published T5 1.0 files hold this; no model uses it.
  (
    r'decoder\.block\.0\.layer\.1\.EncDecAttention'
    r'\.relative_attention_bias\.weight',
    naming.UNUSED,
  ),
  *_attention(rf'{_ENCODER}\.0\.SelfAttention', f'{_LAYER}/attention'),
  *_attention(rf'{_DECODER}\.0\.SelfAttention', f'{_LAYER}/self_attention'),
  *_attention(
    rf'{_DECODER}\.1\.EncDecAttention', f'{_LAYER}/encoder_decoder_attention'
  ),
  (
    rf'{_ENCODER}\.0\.layer_norm\.weight',
    f'{_LAYER}/pre_attention_layer_norm/scale',
  ),
  (
    rf'{_DECODER}\.0\.layer_norm\.weight',
    f'{_LAYER}/pre_self_attention_layer_norm/scale',
  ),
  (
    rf'{_DECODER}\.1\.layer_norm\.weight',
    f'{_LAYER}/pre_cross_attention_layer_norm/scale',
  ),
  (
    rf'{_BLOCK}\.[12]\.layer_norm\.weight',
    f'{_LAYER}/pre_mlp_layer_norm/scale',
  ),
  (
    rf'{_BLOCK}\.[12]\.DenseReluDense\.(wi|wi_0|wi_1|wo)\.weight',
    rf'{_LAYER}/mlp/\3/kernel',
  ),
)


def convert(
  config: Mapping[str, Any], tensors: Mapping[str, LazyArray], where: str
) -> tuple[dict[str, LazyArray], dict[str, Any]]:
  """The parameters by path, and the arguments of a `T5Config`.

  Args:
    config: of a T5 1.0, T5 1.1 or mT5.
    tensors: by Hugging Face's names.
    where: the folder, for messages.

  Raises:
    ValueError: the model is another one, a copy of the embedding differs from
      it, or tensors have unknown names, all of which it lists.
  """
  facts = _facts(config, where)
  tensors = _without_copies(tensors, facts, where)
  params = naming.rename_all(tensors, _RULES, where)
  turned = {
    path: leaf.T if _TRANSPOSED.fullmatch(path) else leaf
    for path, leaf in params.items()
  }
  return turned, facts


def _facts(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The arguments of a `T5Config`.

  Raises:
    ValueError: the model is another than T5 1.0, T5 1.1 or mT5.
  """
  fixed = {'relative_attention_max_distance': 128, 'layer_norm_epsilon': 1e-6}
  other = [
    f'{k}={config[k]}' for k, v in fixed.items() if config.get(k, v) != v
  ]
  activation = config.get('feed_forward_proj', 'relu').split('-')
  if activation not in (['relu'], ['gated', 'gelu']):
    other.append(f'feed_forward_proj={config["feed_forward_proj"]}')
  if other:
    raise ValueError(
      f'{where} describes a T5 that this code has no model for: '
      f'{", ".join(other)}.'
    )
  depth = config['num_layers']
  gated = len(activation) == 2
  return {
    'vocab_size': config['vocab_size'],
    'emb_dim': config['d_model'],
    'num_heads': config['num_heads'],
    'num_encoder_layers': depth,
    'num_decoder_layers': config.get('num_decoder_layers') or depth,
    'head_dim': config['d_kv'],
    'mlp_dim': config['d_ff'],
    'mlp_activations': ('gelu', 'linear') if gated else ('relu',),
    'logits_via_embedding': _is_tied(config),
  }


def _is_tied(config: Mapping[str, Any]) -> bool:
  """Whether the logits come from the embedding: T5 1.0 alone.

  Since transformers 5 `tie_word_embeddings` is true of every T5, and
  `scale_decoder_outputs` says what it said before.
  """
  if config['model_type'] == 'mt5':
    return False
  tied = config.get('tie_word_embeddings', True)
  return config.get('scale_decoder_outputs', tied)


def _without_copies(
  tensors: Mapping[str, LazyArray], facts: Mapping[str, Any], where: str
) -> dict[str, LazyArray]:
  """The embedding once: some files hold copies beside it, or only a copy."""
  out = dict(tensors)
  copies = ['encoder.embed_tokens.weight', 'decoder.embed_tokens.weight']
  if facts['logits_via_embedding']:
    copies.append('lm_head.weight')
  for name in copies:
    copy = out.pop(name, None)
    if copy is None:
      continue
    kept = out.setdefault(_EMBEDDING, copy)
    if kept is not copy and not np.array_equal(kept, copy):
      raise ValueError(
        f'{where}: {name} differs from {_EMBEDDING}, which config.json says '
        'it is tied to.'
      )
  return out
