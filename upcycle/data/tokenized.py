# SPDX-License-Identifier: Apache-2.0
"""A tokenized corpus: a folder of flat arrays that are memory mapped.

  manifest.json      where it comes from; size and sha256 of every other file
  vocabulary.model   the SentencePiece model
  {split}.npy        ids of all documents end to end, uint16 (or uint32)
  {split}_ends.npy   int64, where each document ends

As in T5's C4 pipeline there is no EOS between documents: EOS ends the inputs
and the targets of an example.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from upcycle.data import manifests, packages, vocabulary

WHAT = 'tokenized corpus'
PREPARE = 'run `python scripts/prepare_data.py text`'


class Tokens(NamedTuple):
  """One split: ids [N] of all documents, ends [documents], their vocabulary."""

  ids: np.ndarray
  ends: np.ndarray
  vocabulary_size: int  # pieces and sentinels
  pieces: int


def write(
  folder: str | Path,
  splits: dict[str, Sequence[str]],
  model: bytes,
  origin: dict[str, Any],
) -> dict[str, Any]:
  """Tokenizes the texts of each split into `folder`, all at once or not at all.

  Args:
    folder: replaced if it exists.
    splits: texts of the documents by split.
    model: a SentencePiece model.
    origin: what identifies the input; kept in the manifest.

  Returns:
    The manifest.
  """

  def fill(new: Path) -> dict[str, Any]:
    (new / 'vocabulary.model').write_bytes(model)
    words = vocabulary.Vocabulary(model)
    counts = {
      split: _write_split(new, split, texts, words)
      for split, texts in splits.items()
    }
    sizes = {'pieces': words.pieces, 'size': words.size}
    return {'origin': origin, 'vocabulary': sizes, 'splits': counts}

  return manifests.write(folder, fill)


def _write_split(folder, split, texts, words) -> dict[str, int]:
  ids = words.encode_all(texts)
  flat = vocabulary.as_array(ids, words.size)
  np.save(folder / f'{split}.npy', flat)
  np.save(folder / f'{split}_ends.npy', np.cumsum([len(x) for x in ids]))
  return {
    'documents': len(texts),
    'bytes': sum(len(t.encode()) for t in texts),
    'tokens': len(flat),
  }


def manifest(folder: str | Path) -> dict[str, Any]:
  """The manifest of a corpus, checked as by `manifests.read`."""
  return manifests.read(folder, WHAT, PREPARE)


def verify(folder: str | Path) -> dict[str, Any]:
  """Like `manifest`, and every checksum is compared."""
  return manifests.verify(folder, WHAT, PREPARE)


def load(
  folder: str | Path, split: str, vocab_size: int | None = None
) -> Tokens:
  """Memory maps a split.

  Args:
    folder: what `write` made.
    split: 'train' or 'validation'.
    vocab_size: see `vocabulary.check_size`.

  Raises:
    FileNotFoundError, ValueError: as `manifest`; an unknown split; another
      vocabulary than the corpus was made with; an embedding that is too small.
  """
  found = manifest(folder)
  if split not in found['splits']:
    raise ValueError(
      f'{folder} has no split {split!r}; it has {sorted(found["splits"])}.'
    )
  size, pieces = found['vocabulary']['size'], found['vocabulary']['pieces']
  vocabulary.check_size(folder, size, vocab_size)
  model = 'vocabulary.model'
  packages.verify(Path(folder) / model, found['files'][model]['sha256'])
  ids = np.load(Path(folder) / f'{split}.npy', mmap_mode='r')
  ends = np.load(Path(folder) / f'{split}_ends.npy')
  return Tokens(ids, ends, size, pieces)
