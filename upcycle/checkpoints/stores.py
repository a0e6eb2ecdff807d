# SPDX-License-Identifier: Apache-2.0
"""Folders of zarr arrays, local or on Cloud Storage, through TensorStore."""

import collections
from collections.abc import Iterable, Mapping
import itertools
import json
import math
import os
import re
from typing import Any

import numpy as np
import tensorstore as ts

from upcycle.checkpoints.arrays import LazyArray

# Compressors that both this TensorStore and the one of T5X know.
COMPRESSORS = {
  None: None,
  'gzip': {'id': 'gzip', 'level': 1},
  'zstd': {'id': 'zstd', 'level': 1},
  'blosc': {'id': 'blosc', 'cname': 'lz4', 'clevel': 5, 'shuffle': 1},
}
# Large enough for few files, small enough that one expert of a Base model, and
# not a gathered group of them, is a chunk.
_CHUNK_BYTES = 8 * 2**20
# No fsync of each file: as durable as a copy, and twice as fast.
_WRITING = ts.Context({'file_io_sync': False})


def is_remote(path: str) -> bool:
  return path.startswith('gs://')


def kvstore(root: str, name: str = '') -> dict[str, str]:
  """The TensorStore spec of the folder `name` below a local or gs:// root."""
  match = re.fullmatch(r'gs://([^/]+)/?(.*)', root)
  if match:
    bucket, folder = match.groups()
    path = '/'.join(p.strip('/') for p in (folder, name) if p)
    spec = {'driver': 'gcs', 'bucket': bucket}
  else:
    path = os.path.abspath(os.path.join(root, name))
    spec = {'driver': 'file'}
  return {**spec, 'path': f'{path}/' if path else ''}


def _open(root: str, name: str = '') -> ts.KvStore:
  return ts.KvStore.open(kvstore(root, name)).result()


def read_file(root: str, name: str) -> bytes:
  """The bytes of a file; raises FileNotFoundError where there is none."""
  found = _open(root).read(name).result()
  if found.state != 'value':
    raise FileNotFoundError(f'There is no file {name!r} in {root}.')
  return found.value


def write_file(root: str, name: str, content: bytes) -> None:
  _open(root).write(name, content).result()


def names(root: str) -> set[str]:
  """The names of files and folders directly below a folder."""
  if not is_remote(root):
    return set(os.listdir(root)) if os.path.isdir(root) else set()
  return {key.decode().split('/')[0] for key in _open(root).list().result()}


def read_arrays(
  root: str, array_names: Iterable[str], shapes: Mapping[str, Any]
) -> dict[str, LazyArray]:
  """Lazy arrays by name, after a check that every chunk of each is there.

  TensorStore reads a missing chunk as zeros, so this looks for all of them.

  Args:
    root: the folder, local or gs://.
    array_names: the folders of the arrays below it.
    shapes: the shape of an array where the caller knows it from elsewhere.

  Raises:
    ValueError: arrays or chunks are missing or truncated; lists all of them.
  """
  array_names = list(array_names)
  store = _open(root)
  keys = {key.decode() for key in store.list().result()}
  metadata = {n: store.read(f'{n}/.zarray') for n in array_names}
  problems, arrays = [], {}
  for name in array_names:
    if f'{name}/.zarray' not in keys:
      problems.append(f'{name}/.zarray: missing')
      continue
    try:
      zarray = json.loads(metadata[name].result().value)
      arrays[name] = _lazy(root, name, zarray)
      problems += _chunk_problems(root, name, zarray, keys)
    except (ValueError, KeyError, TypeError):
      problems.append(f'{name}/.zarray: is no zarr metadata')
      continue
    shape = shapes.get(name, arrays[name].shape)
    if tuple(shape) != arrays[name].shape:
      problems.append(
        f'{name}: is {list(arrays[name].shape)}, the index says {list(shape)}'
      )
  if problems:
    raise ValueError(
      f'{root} is damaged in {len(problems)} places; copy it again:\n  '
      + '\n  '.join(problems)
    )
  return arrays


def _lazy(root: str, name: str, zarray: Mapping[str, Any]) -> LazyArray:
  kind = dtype(zarray['dtype'])
  return LazyArray(
    tuple(zarray['shape']),
    kind,
    lambda index=...: read_array(root, name, index).view(kind),
  )


def dtype(name: str) -> np.dtype:
  """The dtype of a name; before its version 3, T5X wrote bfloat16 as '<u2'."""
  is_bfloat16 = name in ('bfloat16', '<u2')
  return ts.bfloat16.numpy_dtype if is_bfloat16 else np.dtype(name)


def read_array(root: str, name: str, index: Any = ...) -> np.ndarray:
  """One array, or array[index] without the rest of it, from disk.

  Raises:
    ValueError: a chunk cannot be read; names the array and the file.
  """
  spec = {
    'driver': 'zarr',
    'kvstore': kvstore(root, name),
    'fill_missing_data_reads': False,
  }
  try:
    array = ts.open(spec, open=True, read=True).result()
    return np.asarray(array[index].read().result())
  except ValueError as error:
    raise ValueError(f'Array {name!r} of {root} is damaged: {error}') from error


def _chunk_problems(
  root: str, name: str, zarray: Mapping[str, Any], keys: set[str]
) -> list[str]:
  """The chunk files of one array that are missing or too short."""
  chunks = zarray['chunks']
  grid = [
    math.ceil(n / c) for n, c in zip(zarray['shape'], chunks, strict=True)
  ]
  separator = zarray.get('dimension_separator', '.')
  nbytes = math.prod(chunks) * dtype(zarray['dtype']).itemsize
  problems = []
  for position in itertools.product(*map(range, grid)):
    key = f'{name}/{separator.join(map(str, position)) or "0"}'
    if key not in keys:
      problems.append(f'{key}: missing')
    elif not is_remote(root):
      stored = _stored_bytes(os.path.join(root, key), zarray['compressor'])
      if stored != nbytes and stored is not None:
        problems.append(f'{key}: holds {stored} bytes of {nbytes}')
  return problems


def _stored_bytes(
  file: str, compressor: Mapping[str, Any] | None
) -> int | None:
  """Uncompressed size of a chunk file, as cheaply as it can be known.

  A gzip file ends with that size (mod 2**32). Others are only found damaged
  when read: None.
  """
  if compressor is None or os.path.getsize(file) == 0:
    return os.path.getsize(file)
  if compressor['id'] != 'gzip':
    return None
  with open(file, 'rb') as f:
    f.seek(-min(4, os.path.getsize(file)), os.SEEK_END)
    return int.from_bytes(f.read(), 'little')


def array_spec(
  name: str, array: Any, compression: str | None
) -> dict[str, Any]:
  """The TensorStore spec of an array to write, its path relative."""
  return {
    'driver': 'zarr',
    'dtype': np.dtype(array.dtype).name,
    'kvstore': {'driver': 'file', 'path': f'{name}/'},
    'metadata': {
      'chunks': chunk_shape(array.shape, np.dtype(array.dtype).itemsize),
      'compressor': COMPRESSORS[compression],
      'shape': list(array.shape),
    },
  }


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> list[int]:
  """Chunks of at most 8 MiB, split along the leading axes only.

  A chunk is then one run of memory: nothing is gathered to write it. The parts
  are as equal as they can be, since zarr pads the last one.
  """
  chunks = list(shape)
  for axis, size in enumerate(shape):
    row = itemsize * math.prod(shape[axis + 1 :])
    most = max(1, _CHUNK_BYTES // max(row, 1))
    chunks[axis] = math.ceil(size / max(1, math.ceil(size / most)))
    if row <= _CHUNK_BYTES:  # the axes behind stay whole
      break
  return chunks


def write_array(root: str, spec: Mapping[str, Any], array: Any) -> None:
  """Writes one array below root, chunk by chunk, reading `array` once.

  Chunks go out one after the other, which is the fastest where the disk is the
  limit and needs no memory; compressed ones as many at a time as there are
  cores.
  """
  metadata = spec['metadata']
  spec = {**spec, 'kvstore': kvstore(root, spec['kvstore']['path'])}
  target = ts.open(spec, create=True, context=_WRITING).result()
  array = np.asarray(array)
  at_once = 1 if metadata['compressor'] is None else os.cpu_count()
  pending = collections.deque()
  for part in _parts(metadata['shape'], metadata['chunks']):
    pending.append(
      target[part].write(
        array[part], can_reference_source_data_indefinitely=True
      )
    )
    if len(pending) == at_once:
      pending.popleft().result()
  for write in pending:
    write.result()


def _parts(shape: list[int], chunks: list[int]) -> Iterable[tuple[slice, ...]]:
  """The index of every chunk."""
  ranges = (
    [slice(i, min(i + step, size)) for i in range(0, size, step)]
    for size, step in zip(shape, chunks, strict=True)
  )
  return itertools.product(*ranges)
