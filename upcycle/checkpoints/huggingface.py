# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: config.json and safetensors, one file or sharded."""

import os

from upcycle import trees
from upcycle.checkpoints import hf_files, hf_t5, hf_vit
from upcycle.checkpoints.arrays import Checkpoint

CONFIG = 'config.json'
# By `model_type`: (config, tensors, where) -> (parameters, facts of the model).
FAMILIES = {
  't5': hf_t5.convert,
  'mt5': hf_t5.convert,
  'vit': hf_vit.convert,
}


def detect(path: str) -> bool:
  """Whether a path is a safetensors file or a folder with one and a config."""
  if os.path.isfile(path):
    return path.endswith(('.safetensors', hf_files.SHARDED))
  names = (hf_files.SINGLE, hf_files.SHARDED)
  return any(os.path.isfile(os.path.join(path, name)) for name in names)


def read(path: str) -> Checkpoint:
  """Reads T5 1.0, T5 1.1, mT5 or ViT; the format records no step, so it is 0.

  Raises:
    ValueError: a file or shard is missing or truncated, the model is none that
      is known here, or tensors have names that are unknown; lists all of them.
  """
  folder = os.path.dirname(path) if os.path.isfile(path) else path
  where = os.path.join(folder, CONFIG)
  config = hf_files.read_json(where)
  convert = FAMILIES.get(config.get('model_type'))
  if convert is None:
    raise ValueError(
      f'{where} says model_type={config.get("model_type")!r}; '
      f'what can be read is {", ".join(FAMILIES)}.'
    )
  params, facts = convert(config, hf_files.tensors(path), folder)
  metadata = {
    'format': 'Hugging Face',
    'path': path,
    'step': 'not recorded by the format',
    'model': facts,
  }
  return Checkpoint(trees.unflatten(params), 0, None, metadata)
