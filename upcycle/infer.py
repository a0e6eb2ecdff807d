# SPDX-License-Identifier: Apache-2.0
"""Text in, generated text out."""

from collections.abc import Iterable, Iterator, Sequence
import itertools
from typing import Any

import jax
from jaxtyping import Int
import numpy as np

from upcycle import decode
from upcycle.data.vocabulary import EOS, Vocabulary

SHORTEST = 16  # tokens that inputs are padded to at least


def infer(
  model: Any,
  params: Any,
  texts: Iterable[str],
  words: Vocabulary,
  *,
  strategy: decode.Sampling | decode.Beam = decode.GREEDY,
  inputs_length: int = 512,
  max_length: int = 64,
  batch_size: int = 32,
  seed: int = 0,
) -> Iterator[dict[str, Any]]:
  """Generates for each text, batch by batch, as they come.

  A batch is padded to a power of two of tokens: few programs are compiled.

  Args:
    model: a T5.
    params: its parameters.
    texts: inputs; read a batch at a time.
    words: the model's vocabulary.
    strategy: of decoding.
    inputs_length: most tokens of an input, which is cut there.
    max_length: most tokens to generate.
    batch_size: texts decoded together.
    seed: of what is drawn, another in each batch.

  Yields:
    For each text, in order, {'inputs', 'prediction', 'score'}, and 'others', a
    list of {'prediction', 'score'}, where the strategy gives several.
  """
  key, texts = jax.random.key(seed), iter(texts)
  for number in itertools.count():
    batch = list(itertools.islice(texts, batch_size))
    if not batch:
      return
    decoded = decode.on_mesh(
      *(model, params, tokenized(batch, words, inputs_length, batch_size)),
      strategy=strategy,
      max_length=max_length,
      key=jax.random.fold_in(key, number),
    )
    for text, *found in zip(batch, *decoded, strict=False):
      best, *others = (
        {'prediction': words.decode(tokens), 'score': float(score)}
        for tokens, score in zip(*found, strict=True)
      )
      yield {'inputs': text, **best} | ({'others': others} if others else {})


def tokenized(
  texts: Sequence[str], words: Vocabulary, most: int, rows: int
) -> Int[np.ndarray, 'B K']:
  """Ids of texts, cut to `most` with their EOS kept, in `rows` rows."""
  ids = [[*words.encode(text)[: most - 1], EOS] for text in texts]
  length = SHORTEST
  while length < max(map(len, ids)):
    length *= 2
  tokens = np.zeros((rows, min(length, most)), np.int32)
  for row, found in zip(tokens, ids, strict=False):
    row[: len(found)] = found
  return tokens
