# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's T5: its names, layout and configuration in our terms."""

from collections.abc import Mapping
import re
from typing import Any

import numpy as np

from upcycle.checkpoints import naming
from upcycle.checkpoints.arrays import LazyArray
from upcycle.checkpoints.hf_t5_names import EMBEDDING, IDLE, NAMES

_TRANSPOSED = re.compile(r'.*/(kernel|rel_embedding)')


# Their fields and the arguments of our config.
_FIELDS = {
  'vocab_size': 'vocab_size',
  'd_model': 'emb_dim',
  'num_heads': 'num_heads',
  'num_layers': 'num_encoder_layers',
  'num_decoder_layers': 'num_decoder_layers',
  'd_kv': 'head_dim',
  'd_ff': 'mlp_dim',
}
_ACTIVATIONS = {'relu': ('relu',), 'gated-gelu': ('gelu', 'linear')}
# What our model has no other value for.
_FIXED = {'relative_attention_max_distance': 128, 'layer_norm_epsilon': 1e-6}
_TOKENS = {'pad_token_id': 0, 'eos_token_id': 1, 'decoder_start_token_id': 0}


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
  params = naming.rename_all(tensors, naming.rules((*NAMES, IDLE)), where)
  return _turned(params), facts


def _facts(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The arguments of a `T5Config`.

  Raises:
    ValueError: the model is another than T5 1.0, T5 1.1 or mT5.
  """
  other = [
    f'{k}={config[k]}' for k, v in _FIXED.items() if config.get(k, v) != v
  ]
  activation = config.get('feed_forward_proj', 'relu')
  if activation not in _ACTIVATIONS:
    other.append(f'feed_forward_proj={activation}')
  if other:
    raise ValueError(
      f'{where} describes a T5 that this code has no model for: '
      f'{", ".join(other)}.'
    )
  decoder = config.get('num_decoder_layers') or config['num_layers']
  config = {**config, 'num_decoder_layers': decoder}
  return {
    **{ours: config[theirs] for theirs, ours in _FIELDS.items()},
    'mlp_activations': _ACTIVATIONS[activation],
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
    kept = out.setdefault(EMBEDDING, copy)
    if kept is not copy and not np.array_equal(kept, copy):
      raise ValueError(
        f'{where}: {name} differs from {EMBEDDING}, which config.json says '
        'it is tied to.'
      )
  return out


def restore(
  params: Mapping[str, Any], model: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
  """The config, the generation config and the tensors, under their names.

  Args:
    params: by path.
    model: the arguments of a `T5Config`.
    where: begins messages.

  Raises:
    ValueError: their T5 has no such activations, or no such parameters, all of
      which it lists.
  """
  back = naming.rules((ours, theirs) for theirs, ours in NAMES)
  tensors = naming.rename_all(_turned(params), back, where)
  return config_of(model, where), dict(_TOKENS), tensors


def config_of(model: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Their config.json of a model.

  Args:
    model: the arguments of a `T5Config`.
    where: begins messages.

  Raises:
    ValueError: their T5 has no such activations.
  """
  names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
  activation = names.get(tuple(model['mlp_activations']))
  if activation is None:
    raise ValueError(
      f'{where}: Hugging Face has no T5 with the activations '
      f'{model["mlp_activations"]}: take the format safetensors.'
    )
  return {
    'architectures': ['T5ForConditionalGeneration'],
    'model_type': 't5',
    'is_encoder_decoder': True,
    **{theirs: model[ours] for theirs, ours in _FIELDS.items()},
    'feed_forward_proj': activation,
    # Since transformers 5 it says whether logits are scaled.
    'tie_word_embeddings': model['logits_via_embedding'],
    'relative_attention_num_buckets': 32,
    **_FIXED,
    **_TOKENS,
  }


def _turned(params: Mapping[str, Any]) -> dict[str, Any]:
  """Matrices by inputs and outputs, from the other way round, or back."""
  return {
    path: leaf.T if _TRANSPOSED.fullmatch(path) else leaf
    for path, leaf in params.items()
  }
