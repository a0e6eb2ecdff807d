# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: config.json and safetensors, one file or sharded."""

from collections.abc import Callable, Mapping
import json
import os
import re
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from upcycle import trees
from upcycle.checkpoints.arrays import Checkpoint, LazyArray

CONFIG = 'config.json'
SINGLE = 'model.safetensors'
SHARDED = 'model.safetensors.index.json'
_DTYPES = {
  'F64': np.dtype('float64'),
  'F32': np.dtype('float32'),
  'F16': np.dtype('float16'),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}


class Family(NamedTuple):
  """How one `model_type` is read: its names, its layout, its config."""

  rules: tuple[tuple[str, str], ...]
  transposed: str
  facts: Callable[[Mapping[str, Any], str], dict[str, Any]]
  copies: Callable[[Mapping[str, Any]], tuple[str, ...]]


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

_UNUSED = ''
T5_RULES = (
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
    _UNUSED,
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


def _t5_facts(config: Mapping[str, Any], where: str) -> dict[str, Any]:
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


def _t5_copies(facts: Mapping[str, Any]) -> tuple[str, ...]:
  """Copies of the embedding that some files hold beside it."""
  copies = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
  tied = ('lm_head.weight',) if facts['logits_via_embedding'] else ()
  return copies + tied


_T5 = Family(T5_RULES, r'.*/(kernel|rel_embedding)', _t5_facts, _t5_copies)
FAMILIES = {'t5': _T5, 'mt5': _T5}


def detect(path: str) -> bool:
  """Whether a path is a safetensors file or a folder with one and a config."""
  if os.path.isfile(path):
    return path.endswith(('.safetensors', SHARDED))
  return any(os.path.isfile(os.path.join(path, x)) for x in (SINGLE, SHARDED))


def read(path: str) -> Checkpoint:
  """Reads T5 1.0, T5 1.1 or mT5; the format records no step, so it is 0.

  Raises:
    ValueError: a file or shard is missing or truncated, the model is none that
      is known here, or tensors have names that are unknown; lists all of them.
  """
  folder = os.path.dirname(path) if os.path.isfile(path) else path
  where = os.path.join(folder, CONFIG)
  config = _json(where)
  family = FAMILIES.get(config.get('model_type'))
  if family is None:
    raise ValueError(
      f'{where} says model_type={config.get("model_type")!r}; '
      f'what can be read is {", ".join(FAMILIES)}.'
    )
  facts = family.facts(config, where)
  tensors = _tensors(path)
  metadata = {
    'format': 'Hugging Face',
    'path': path,
    'step': 'not recorded by the format',
    'model': facts,
  }
  for name in family.copies(facts):
    _drop_copy(name, 'shared.weight', tensors, folder)
  params = _rename(tensors, family, folder)
  return Checkpoint(trees.unflatten(params), 0, None, metadata)


def _drop_copy(
  name: str, of: str, tensors: dict[str, LazyArray], where: str
) -> None:
  """Removes a tensor that has to equal another; the only one stays, renamed."""
  copy = tensors.pop(name, None)
  if copy is None:
    return
  kept = tensors.setdefault(of, copy)
  if kept is not copy and not np.array_equal(kept, copy):
    raise ValueError(
      f'{where}: {name} differs from {of}, which {CONFIG} says it is tied to.'
    )


def _rename(
  tensors: Mapping[str, LazyArray], family: Family, where: str
) -> dict[str, LazyArray]:
  names = {name: trees.rename(name, family.rules) for name in tensors}
  unknown = sorted(name for name, path in names.items() if path is None)
  if unknown:
    raise ValueError(
      f'{where} holds {len(unknown)} tensors of unknown names:\n  '
      + '\n  '.join(unknown)
    )
  turned = re.compile(family.transposed)
  return {
    path: tensors[name].T if turned.fullmatch(path) else tensors[name]
    for name, path in names.items()
    if path != _UNUSED
  }


def _json(file: str) -> dict[str, Any]:
  try:
    with open(file, encoding='utf-8') as f:
      return json.load(f)
  except FileNotFoundError:
    raise FileNotFoundError(f'{file} is missing.') from None
  except ValueError as error:
    raise ValueError(f'{file} is truncated or no JSON: {error}.') from error


def _tensors(path: str) -> dict[str, LazyArray]:
  """Lazy tensors by name, of one file or of all shards."""
  folder = os.path.dirname(path) if os.path.isfile(path) else path
  index = path if path.endswith('.json') else os.path.join(folder, SHARDED)
  if path.endswith('.safetensors'):
    expected = {path: None}
  elif os.path.isfile(os.path.join(folder, SINGLE)) and path != index:
    expected = {os.path.join(folder, SINGLE): None}
  else:
    expected = {}
    for name, shard in _json(index)['weight_map'].items():
      expected.setdefault(os.path.join(folder, shard), []).append(name)
  tensors, problems = {}, []
  for file, names in expected.items():
    try:
      found = _file_tensors(file)
    except (OSError, ValueError, SafetensorError) as error:
      problems.append(f'{file}: {error}')
      continue
    problems += [f'{file}: lacks {n}' for n in names or () if n not in found]
    tensors |= found
  if problems:
    raise ValueError(
      f'{folder} is damaged; copy it again:\n  ' + '\n  '.join(problems)
    )
  return tensors


def _file_tensors(file: str) -> dict[str, LazyArray]:
  with safe_open(file, framework='numpy') as f:
    slices = {name: f.get_slice(name) for name in f.keys()}
    return {
      name: _lazy(file, name, part.get_shape(), part.get_dtype())
      for name, part in slices.items()
    }


def _lazy(file: str, name: str, shape: list[int], dtype: str) -> LazyArray:
  def read_tensor():
    with safe_open(file, framework='numpy') as f:
      return f.get_tensor(name)

  if dtype not in _DTYPES:
    raise ValueError(f'{name} is {dtype}, not one of {", ".join(_DTYPES)}')
  return LazyArray(tuple(shape), _DTYPES[dtype], read_tensor)
