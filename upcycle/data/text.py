# SPDX-License-Identifier: Apache-2.0
"""Batches of text: span corruption for pretraining, pairs for finetuning.

Both are pipelines of `batches`, which says what a batch holds and what the
arguments they share mean.
"""

from collections.abc import Sequence
import json
from pathlib import Path

import grain
import numpy as np

from upcycle.data import denoising, tokenized, vocabulary
from upcycle.data.batches import Example, batches
from upcycle.data.vocabulary import EOS


class Chunks(Sequence):
  """Pieces of at most `length` tokens of a split, by index.

  Across documents as in T5, or, if `apart`, never across: then the last chunk
  of each document is shorter. A rest at the end of the split is left out.
  """

  def __init__(self, tokens: tokenized.Tokens, length: int, apart: bool):
    self.ids = tokens.ids
    ends = tokens.ends if apart else np.array([len(tokens.ids)])
    begins = np.concatenate([[0], ends[:-1]])
    if not apart:
      ends = ends - ends % length
    self.spans = np.array(
      [
        (start, min(start + length, end))
        for begin, end in zip(begins, ends, strict=True)
        for start in range(begin, end, length)
      ]
    )

  def __len__(self) -> int:
    return len(self.spans)

  def __getitem__(self, i: int) -> np.ndarray:
    start, end = self.spans[i]
    return self.ids[start:end].astype(np.int32)


def span_corruption(
  corpus: str | Path,
  *,
  batch_size: int,
  split: str = 'train',
  inputs_length: int = 512,
  targets_length: int | None = None,
  noise_density: float = 0.15,
  mean_noise_span_length: float = 3.0,
  packed: bool = False,
  seed: int = 0,
  repeat: bool = True,
  shuffle: bool = True,
  vocab_size: int | None = None,
  shard_index: int | None = None,
  shard_count: int | None = None,
) -> grain.IterDataset:
  """T5's pretraining batches from a tokenized corpus.

  Texts are as long as the inputs hold (`denoising.lengths`): every row is full.
  Every epoch has its own order and its own masks. For evaluation take
  repeat=False and shuffle=False: always the same batches, the last one filled
  up with rows of weight 0, so that sums over the split are exact.

  Args:
    corpus: a folder made by scripts/prepare_data.py.
    batch_size: rows over all processes.
    split: 'train' or 'validation'.
    inputs_length: tokens of a row of the encoder.
    targets_length: tokens of a row of the decoder; None takes what is needed.
    noise_density: share of masked tokens.
    mean_noise_span_length: tokens of a masked span.
    packed: keep documents apart: no text crosses from one into another, and
      short ones share a row as segments.
    seed: of order and masks.
    repeat: whether to go on without end.
    shuffle: whether to shuffle texts, anew every epoch.
    vocab_size: rows of the model's embedding, to be checked.
    shard_index: this process; None asks JAX.
    shard_count: processes; None asks JAX.

  Raises:
    FileNotFoundError, ValueError: no corpus, or a broken one, or arguments that
      do not fit together, each with what to do.
  """
  tokens = tokenized.load(corpus, split, vocab_size)
  need = denoising.lengths(
    inputs_length,
    noise_density,
    mean_noise_span_length,
    tokens.vocabulary_size - tokens.pieces,
  )
  targets_length = targets_length or need.targets
  if targets_length < need.targets:
    raise ValueError(
      f'targets_length {targets_length} is too small: inputs_length '
      f'{inputs_length} needs {need.targets}.'
    )

  def corrupt(chunk: np.ndarray, rng: np.random.Generator) -> Example:
    mask = denoising.noise_mask(
      len(chunk), rng, noise_density, mean_noise_span_length
    )
    return denoising.corrupt(chunk, mask, tokens.vocabulary_size)

  return batches(
    Chunks(tokens, need.raw, apart=packed),
    corrupt,
    lengths={'inputs': inputs_length, 'targets': targets_length},
    what=f'{corpus}, split {split}',
    batch_size=batch_size,
    packed=packed,
    seed=seed,
    repeat=repeat,
    shuffle=shuffle,
    shard_index=shard_index,
    shard_count=shard_count,
  )


def text_pairs(
  path: str | Path | Sequence[str | Path],
  vocabulary_path: str | Path,
  *,
  batch_size: int,
  inputs_length: int = 512,
  targets_length: int = 62,
  packed: bool = False,
  seed: int = 0,
  repeat: bool = True,
  shuffle: bool = True,
  vocab_size: int | None = None,
  shard_index: int | None = None,
  shard_count: int | None = None,
) -> grain.IterDataset:
  """Batches of a text-to-text task in a file of JSON lines.

  Every line is {"inputs": "...", "targets": "..."}; texts that are too long
  are cut, EOS is kept. Arguments are those of `span_corruption`, but for:

  Args:
    path: the JSON lines; of several files every example is equally likely,
      that is, tasks are mixed in proportion to their examples.
    vocabulary_path: a .model file, or a tokenized corpus folder.
    packed: several pairs share a row as segments, first fit.

  Raises:
    FileNotFoundError, ValueError: no file, lines that are not such pairs, or
      more ids than the model has.
  """
  words = vocabulary.load(vocabulary_path, vocab_size=vocab_size)
  paths = [path] if isinstance(path, (str, Path)) else path
  lengths = {'inputs': inputs_length, 'targets': targets_length}

  def tokenize(pair: dict[str, str], rng: np.random.Generator) -> Example:
    del rng
    return {
      name: np.array([*words.encode(pair[name])[: length - 1], EOS], np.int32)
      for name, length in lengths.items()
    }

  return batches(
    [pair for one in paths for pair in read_pairs(one)],
    tokenize,
    lengths=lengths,
    what=', '.join(map(str, paths)),
    batch_size=batch_size,
    packed=packed,
    seed=seed,
    repeat=repeat,
    shuffle=shuffle,
    shard_index=shard_index,
    shard_count=shard_count,
  )


def read_pairs(path: str | Path) -> list[dict[str, str]]:
  """The pairs in a file of JSON lines, or an error that lists bad lines."""
  pairs, bad = [], []
  with open(path, encoding='utf-8') as lines:
    for number, line in enumerate(lines, 1):
      try:
        pair = json.loads(line)
        pairs.append({k: str(pair[k]) for k in ('inputs', 'targets')})
      except (ValueError, KeyError, TypeError):
        bad.append(number)
  if bad or not pairs:
    raise ValueError(
      f'{path}: lines {bad[:10]} ({len(bad)} in all, {len(pairs)} good ones) '
      'are not JSON objects with "inputs" and "targets".'
    )
  return pairs
