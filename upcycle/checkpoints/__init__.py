# SPDX-License-Identifier: Apache-2.0
"""A dense checkpoint comes in: `read(path)` finds the format by content.

Arrays are lazy and carry this project's names. No pickle is ever opened.
"""

import os
import zipfile

from upcycle.checkpoints import exported, huggingface, stores, t5x, vit_npz
from upcycle.checkpoints.arrays import Checkpoint, LazyArray

__all__ = [
  'FORMATS',
  'Checkpoint',
  'LazyArray',
  'exported',
  'huggingface',
  'is_run',
  'read',
  't5x',
  'vit_npz',
]


def is_run(path: str | os.PathLike) -> bool:
  """A run's folder, or the folder of one step of it."""
  folder, name = os.path.split(os.path.abspath(path))
  return os.path.isdir(os.path.join(path, 'checkpoints')) or (
    os.path.basename(folder) == 'checkpoints' and name.isdigit()
  )


def _read_run(path: str) -> Checkpoint:
  # Orbax takes seconds to import and no other format needs it.
  from upcycle.checkpoints import state

  return state.read(path)


# The first format that detects a path reads it.
FORMATS = (
  (is_run, _read_run),
  (exported.detect, exported.read),
  (vit_npz.detect, vit_npz.read),
  (t5x.detect, t5x.read),
  (huggingface.detect, huggingface.read),
)

_PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')


def read(path: str | os.PathLike) -> Checkpoint:
  """Reads a checkpoint of any known format, its arrays lazily.

  Args:
    path: a T5X folder (or the folder of several: the newest is taken), local
      or gs://; a run's folder; a Hugging Face folder or safetensors file; or
      an .npz file of vit_jax, big_vision or vmoe; or what `exported` wrote.

  Raises:
    FileNotFoundError: there is nothing at the path.
    ValueError: the format is unknown, a pickle, or the checkpoint is damaged;
      one error that lists every damage that can be seen without reading data.
  """
  path = os.path.expanduser(os.fspath(path))
  if not stores.is_remote(path) and not os.path.exists(path):
    raise FileNotFoundError(f'There is no checkpoint at {path}.')
  for detect, reader in FORMATS:
    if detect(path):
      return reader(path)
  raise ValueError(_why_not(path))


def _why_not(path: str) -> str:
  """Says what is at a path that no format has detected."""
  if os.path.isfile(path):
    found, pickles = [path], [path] if _is_pickle(path) else []
  else:
    found = sorted(stores.names(path))
    pickles = [x for x in found if _is_pickle(os.path.join(path, x))]
  if pickles:
    return (
      f'{path}: {", ".join(pickles)} is a pickle, and no pickle is opened '
      'here since that can run any code. If you trust it, make safetensors: '
      'transformers.AutoModelForSeq2SeqLM (of a ViT: '
      'AutoModelForImageClassification).from_pretrained(folder)'
      '.save_pretrained(new_folder, safe_serialization=True).'
    )
  what = f'holds {", ".join(found[:5])}' if found else 'is empty'
  return (
    f'{path} is no checkpoint of a known format: it {what}. Known are T5X '
    '(a msgpack file `checkpoint`), Hugging Face (config.json with '
    'model.safetensors) and .npz files of vit_jax, big_vision or vmoe.'
  )


def _is_pickle(file: str) -> bool:
  """By name, by the first bytes, or a zip file with a pickle in it."""
  if not os.path.isfile(file):
    return False
  if file.endswith(_PICKLES):
    return True
  if zipfile.is_zipfile(file):
    with zipfile.ZipFile(file) as archive:
      return any(name.endswith('.pkl') for name in archive.namelist())
  with open(file, 'rb') as f:
    start = f.read(2)
  return start[:1] == b'\x80' and start[1:] in (b'\2', b'\3', b'\4', b'\5')
