# SPDX-License-Identifier: Apache-2.0
"""Files of a Hugging Face folder: JSON, and safetensors, one or sharded."""

from collections.abc import Callable, Mapping
import json
import os
from pathlib import Path
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
SHARD_BYTES = 5 * 10**9  # as save_pretrained of transformers 4


def detect(path: str) -> bool:
  """Whether a path is such a file, an index, or a folder of one."""
  if os.path.isfile(path):
    return path.endswith(('.safetensors', SHARDED))
  return any(
    os.path.isfile(os.path.join(path, name)) for name in (SINGLE, SHARDED)
  )


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


def nbytes(tensors: Mapping[str, Any]) -> int:
  """What tensors, lazy ones too, take in a file."""
  return sum(x.size * x.dtype.itemsize for x in tensors.values())


def write(
  folder: Path,
  tensors: Mapping[str, Any],
  *,
  shard_bytes: int = SHARD_BYTES,
  progress: Callable[[str, int], None] | None = None,
) -> None:
  """Writes one file, or several and their index, one tensor at a time.

  Args:
    folder: that is there.
    tensors: arrays, lazy ones too, by name.
    shard_bytes: most bytes of a file that has more than one tensor.
    progress: is told the name and bytes of each tensor once written.

  Raises:
    ValueError: dtypes that are none of a checkpoint's, all listed.
  """
  other = [n for n, x in tensors.items() if x.dtype not in _DTYPES.values()]
  if other:
    raise ValueError(f'No numbers of a checkpoint: {", ".join(other)}.')
  shards = _shards(tensors, shard_bytes)
  weight_map = {}
  for i, names in enumerate(shards, 1):
    file = SINGLE
    if len(shards) > 1:
      file = f'model-{i:05}-of-{len(shards):05}.safetensors'
    _write_file(folder / file, {n: tensors[n] for n in names}, progress)
    weight_map |= dict.fromkeys(names, file)
  if len(shards) > 1:
    index = {'metadata': {'total_size': nbytes(tensors)}}
    write_json(folder / SHARDED, index | {'weight_map': weight_map})


def write_json(file: Path, value: Mapping[str, Any]) -> None:
  """Writes a file as `read_json` reads it."""
  file.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')


def _shards(tensors: Mapping[str, Any], most: int) -> list[list[str]]:
  """Names, in order, of which each list is as long as fits."""
  shards, room = [[]], most
  for name, x in tensors.items():
    size = nbytes({name: x})
    if shards[-1] and size > room:
      shards.append([])
      room = most
    shards[-1].append(name)
    room -= size
  return shards


def _write_file(file: Path, tensors: Mapping[str, Any], progress) -> None:
  """As safetensors does, whose own function takes all tensors in memory."""
  kinds = {dtype: name for name, dtype in _DTYPES.items()}
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for name, x in tensors.items():
    start, end = end, end + nbytes({name: x})
    header[name] = {
      'dtype': kinds[x.dtype],
      'shape': list(x.shape),
      'data_offsets': [start, end],
    }
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with open(file, 'wb') as f:
    f.write(len(text).to_bytes(8, 'little') + text)
    for name, x in tensors.items():
      f.write(np.ascontiguousarray(x).view(np.uint8).data)
      if progress:
        progress(name, nbytes({name: x}))
