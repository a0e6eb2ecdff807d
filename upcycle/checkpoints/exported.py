# SPDX-License-Identifier: Apache-2.0
"""Our own export: safetensors by our paths, and a config.json that is ours.

It holds what no other code base has a name for: sparse models. A tensor is
named by its path, 'encoder/layers_1/mlp/expert/wi_0/kernel', and kept as it is.
"""

from collections.abc import Callable, Mapping
import os
from pathlib import Path
from typing import Any

from upcycle import trees
from upcycle.checkpoints import folders, hf_files
from upcycle.checkpoints.arrays import Checkpoint

CONFIG = 'config.json'
FORMAT = 'upcycle'
VERSION = 1


def detect(path: str) -> bool:
  """Whether a path is one of safetensors whose config.json says so."""
  if not hf_files.detect(path):
    return False
  try:
    return hf_files.read_json(_config(path)).get('format') == FORMAT
  except (OSError, ValueError):
    return False  # which the reader of Hugging Face's folders explains


def _config(path: str) -> str:
  folder = os.path.dirname(path) if os.path.isfile(path) else path
  return os.path.join(folder, CONFIG)


def read(path: str) -> Checkpoint:
  """Reads what `write` wrote.

  Raises:
    ValueError: files are missing, truncated, or of a later version.
  """
  config = hf_files.read_json(_config(path))
  if config['version'] > VERSION:
    raise ValueError(
      f'{path} is of version {config["version"]} of this format, of which '
      f'{VERSION} is known here: take a newer upcycle.'
    )
  model = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in config['model'].items()
  }
  metadata = {
    'format': 'upcycle, exported',
    'path': path,
    'model_type': config['model_type'],
    'moe': config['moe'],
    'model': model,
  }
  params = trees.unflatten(hf_files.tensors(path))
  return Checkpoint(params, config['step'], None, metadata)


def write(
  path: str | os.PathLike,
  params: Mapping[str, Any],
  step: int,
  about: Mapping[str, Any],
  *,
  shard_bytes: int = hf_files.SHARD_BYTES,
  progress: Callable[[str, int], None] | None = None,
) -> Path:
  """Writes any model, one tensor at a time.

  Args:
    path: the local folder that is made.
    params: nested dict of arrays, lazy ones too.
    step: the global step.
    about: `model_type`; `model`, the arguments of its config; `moe`, what each
      sparse layer is like, by path.
    shard_bytes: most bytes of a file.
    progress: is told the name and bytes of each tensor once written.

  Raises:
    FileExistsError: there is something at the path.
    ValueError: dtypes that are none of a checkpoint's, or too little room.
  """
  target, tensors = folders.local(path), trees.flatten(params)
  config = {'format': FORMAT, 'version': VERSION, 'step': step, **about}
  with folders.writing(target, hf_files.nbytes(tensors)) as folder:
    hf_files.write(folder, tensors, shard_bytes=shard_bytes, progress=progress)
    hf_files.write_json(folder / CONFIG, config)
  return target
