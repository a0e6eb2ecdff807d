# SPDX-License-Identifier: Apache-2.0
"""Folders of checkpoints that are written: there whole, or not at all."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import shutil
import time

from upcycle.checkpoints import stores


def local(path: str | os.PathLike) -> Path:
  """A path to write to.

  Raises:
    ValueError: it is none of this machine.
  """
  if stores.is_remote(os.fspath(path)):
    raise ValueError(
      f'{path}: a checkpoint is written to a local folder; '
      'copy it from there with `gcloud storage cp -r`.'
    )
  return Path(path).expanduser()


@contextlib.contextmanager
def writing(
  target: Path, nbytes: int, *, overwrite: bool = False
) -> Iterator[Path]:
  """A folder of a temporary name, which is renamed when all is written.

  Args:
    target: its name then; an empty folder there is replaced.
    nbytes: what will be written.
    overwrite: replaces what is there.

  Raises:
    FileExistsError: there is something and `overwrite` is not set.
    ValueError: too little room on the disk.
  """
  if _is_taken(target) and not overwrite:
    raise FileExistsError(
      f'{target} is there already; remove it or choose another folder.'
    )
  _check_room(target.parent, nbytes)
  partial = target.with_name(f'{target.name}.tmp-{int(time.time())}')
  partial.mkdir(parents=True)
  try:
    yield partial
    if target.exists():
      shutil.rmtree(target)
    partial.rename(target)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def _is_taken(target: Path) -> bool:
  return target.exists() and not (target.is_dir() and not any(target.iterdir()))


def _check_room(folder: Path, needed: int) -> None:
  while not folder.exists():
    folder = folder.parent
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise ValueError(
      f'{folder} has {free / 1e9:.1f} GB free, the checkpoint takes '
      f'{needed / 1e9:.1f} GB: make room or choose another disk.'
    )
