# SPDX-License-Identifier: Apache-2.0
"""Arrays of an .npz file, read one at a time, and written one at a time."""

from collections.abc import Mapping
import functools
import io
import math
import os
from pathlib import Path
from typing import Any
import zipfile
import zlib

import ml_dtypes
import numpy as np

from upcycle.checkpoints.arrays import LazyArray

_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
# numpy stores bfloat16 as two bytes of nothing it knows.
_BFLOAT16 = np.dtype('V2')


def leaves(path: str) -> dict[str, LazyArray]:
  """Lazy arrays by name; `leaf.read(i)` reads no more than row i.

  Raises:
    ValueError: the file is truncated or no zip file, or arrays in it are
      truncated, pickles or none at all; lists all of them.
  """
  found, problems = {}, []
  try:
    with zipfile.ZipFile(path) as archive:
      for info in archive.infolist():
        name = info.filename.removesuffix('.npy')
        try:
          found[name] = _leaf(path, archive, info)
        except _DAMAGE as error:
          problems.append(f'{name}: {error}')
  except _DAMAGE as error:
    problems.append(str(error))
  if problems:
    raise ValueError(
      f'{path} is damaged or no .npz of arrays; copy it again:\n  '
      + '\n  '.join(problems)
    )
  return found


def _leaf(
  path: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> LazyArray:
  with archive.open(info) as f:
    shape, _, dtype = _header(f)
    expected = f.tell() + math.prod(shape) * dtype.itemsize
  if expected != info.file_size:
    raise ValueError(f'holds {info.file_size} of {expected} bytes')
  read = functools.partial(_read, path, info.filename)
  return LazyArray(shape, _named(dtype), read)


def _header(f: io.BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
  """Shape, Fortran order and dtype; `f` is at the first element then."""
  version = np.lib.format.read_magic(f)
  if version not in _HEADERS:
    raise ValueError(f'is of version {version} of the npy format')
  shape, fortran, dtype = _HEADERS[version](f)
  if dtype.hasobject:
    raise ValueError('is a pickle, and no pickle is opened here')
  if _named(dtype).kind not in 'fiub' and _named(dtype) != ml_dtypes.bfloat16:
    raise ValueError(f'is {dtype}, no numbers')
  return shape, fortran, dtype


def _named(dtype: np.dtype) -> np.dtype:
  return np.dtype(ml_dtypes.bfloat16) if dtype == _BFLOAT16 else dtype


def _read(path: str, name: str, row: int | None = None) -> np.ndarray:
  try:
    with zipfile.ZipFile(path) as archive, archive.open(name) as f:
      shape, fortran, dtype = _header(f)
      if row is None or fortran:
        f.seek(0)
        array = np.lib.format.read_array(f, allow_pickle=False)
        array = array if row is None else array[row]
      else:
        size = math.prod(shape[1:]) * dtype.itemsize
        f.seek(row * size, os.SEEK_CUR)
        array = np.frombuffer(f.read(size), dtype).reshape(shape[1:])
  except _DAMAGE as error:
    raise ValueError(f'{path} is damaged; copy it again: {error}') from error
  return array.view(_named(dtype))


def write(path: str | os.PathLike, arrays: Mapping[str, Any]) -> Path:
  """Writes arrays, lazy ones too, under a temporary name that is renamed.

  Bfloat16 becomes float32, which numpy can name.

  Raises:
    FileExistsError: there is something at the path.
  """
  path = Path(path).expanduser()
  if path.exists():
    raise FileExistsError(f'{path} is there already; choose another name.')
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{path.name}.tmp-{os.getpid()}')
  try:
    with open(partial, 'wb') as f:
      np.savez(
        f, allow_pickle=False, **{k: _plain(x) for k, x in arrays.items()}
      )
    partial.rename(path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise
  return path


def _plain(array: Any) -> Any:
  """Lazily, as a dtype that a file of numpy's can name."""
  if array.dtype != ml_dtypes.bfloat16:
    return array
  to_float = lambda: np.asarray(array).astype(np.float32)  # noqa: E731
  return LazyArray(tuple(array.shape), np.dtype(np.float32), to_float)
