# SPDX-License-Identifier: Apache-2.0
"""Files of a Hugging Face folder: JSON, and safetensors, one or sharded."""

import json
import os
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from upcycle.checkpoints.arrays import LazyArray

SINGLE = 'model.safetensors'
SHARDED = 'model.safetensors.index.json'
_DTYPES = {
  'F64': np.dtype('float64'),
  'F32': np.dtype('float32'),
  'F16': np.dtype('float16'),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}


def read_json(file: str) -> dict[str, Any]:
  """Reads a file; raises an error that names it if it is missing or damaged."""
  try:
    with open(file, encoding='utf-8') as f:
      return json.load(f)
  except FileNotFoundError:
    raise FileNotFoundError(f'{file} is missing.') from None
  except ValueError as error:
    raise ValueError(f'{file} is truncated or no JSON: {error}.') from error


def tensors(path: str) -> dict[str, LazyArray]:
  """Lazy tensors by name, of one file or of all shards.

  Raises:
    ValueError: files are missing, truncated or incomplete; lists all of them.
  """
  folder = os.path.dirname(path) if os.path.isfile(path) else path
  index = path if path.endswith('.json') else os.path.join(folder, SHARDED)
  if path.endswith('.safetensors'):
    expected = {path: None}
  elif os.path.isfile(os.path.join(folder, SINGLE)) and path != index:
    expected = {os.path.join(folder, SINGLE): None}
  else:
    expected = {}
    for name, shard in read_json(index)['weight_map'].items():
      expected.setdefault(os.path.join(folder, shard), []).append(name)
  leaves, problems = {}, []
  for file, names in expected.items():
    try:
      found = _file_tensors(file)
    except (OSError, ValueError, SafetensorError) as error:
      problems.append(f'{file}: {error}')
      continue
    problems += [f'{file}: lacks {n}' for n in names or () if n not in found]
    leaves |= found
  if problems:
    raise ValueError(
      f'{folder} is damaged; copy it again:\n  ' + '\n  '.join(problems)
    )
  return leaves


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
