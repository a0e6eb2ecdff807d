# SPDX-License-Identifier: Apache-2.0
"""A tokenized corpus of made-up sentences, for tests that need text."""

import numpy as np

from upcycle.data import tokenized, vocabulary

PIECES = 200


def documents(count: int, sentences: int = 15, seed: int = 0) -> list[str]:
  """Sentences of five-letter words out of 300; no two are equal."""
  rng = np.random.default_rng(seed)
  letters = np.array(list('abcdefghijklmnop'))
  lexicon = [''.join(rng.choice(letters, 5)) for _ in range(300)]

  def sentence():
    return ' '.join(rng.choice(lexicon, 8)) + '.'

  return [
    ' '.join(sentence() for _ in range(rng.integers(1, sentences)))
    for _ in range(count)
  ]


def corpus(folder, train: int = 60, validation: int = 9) -> str:
  """Writes a corpus and returns its path."""
  texts = documents(train + validation)
  splits = {'train': texts[:train], 'validation': texts[train:]}
  model = vocabulary.train(splits['train'], PIECES)
  tokenized.write(folder, splits, model, {'mix': 'tiny'})
  return str(folder)
