# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: config.json and safetensors, one file or sharded."""

from collections.abc import Callable, Mapping
import os
from pathlib import Path
from typing import Any

from upcycle import trees
from upcycle.checkpoints import exported, folders, hf_files, hf_t5, hf_vit
from upcycle.checkpoints.arrays import Checkpoint

CONFIG = 'config.json'
GENERATION = 'generation_config.json'
# By `model_type`: (config, tensors, where) -> (parameters, facts of the model).
FAMILIES = {
  't5': hf_t5.convert,
  'mt5': hf_t5.convert,
  'vit': hf_vit.convert,
}


def detect(path: str) -> bool:
  """Whether a path is a safetensors file or a folder with one and a config."""
  return hf_files.detect(path) and not exported.detect(path)


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


def write(
  path: str | os.PathLike,
  params: Mapping[str, Any],
  model: Mapping[str, Any],
  *,
  shard_bytes: int = hf_files.SHARD_BYTES,
  progress: Callable[[str, int], None] | None = None,
) -> Path:
  """Writes a dense T5 that transformers loads, one tensor at a time.

  Args:
    path: the local folder that is made.
    params: nested dict of arrays, lazy ones too.
    model: the arguments of its `T5Config`.
    shard_bytes: most bytes of a file.
    progress: is told the name and bytes of each tensor once written.

  Raises:
    FileExistsError: there is something at the path.
    ValueError: transformers has no such model, all parameters that stand
      against it are listed; or too little room on the disk.
  """
  target = folders.local(path)
  config, generation, tensors = hf_t5.restore(
    trees.flatten(params), model, f'What was to be written to {target}'
  )
  with folders.writing(target, hf_files.nbytes(tensors)) as folder:
    hf_files.write(folder, tensors, shard_bytes=shard_bytes, progress=progress)
    hf_files.write_json(folder / CONFIG, config)
    hf_files.write_json(folder / GENERATION, generation)
  return target
