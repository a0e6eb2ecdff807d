# SPDX-License-Identifier: Apache-2.0
"""T5's span corruption in numpy (Raffel et al., 2020, section 3.1.4).

  Thank you for inviting me to your party last week
  inputs:  Thank you <extra_id_0> me to your party <extra_id_1> EOS
  targets: <extra_id_0> for inviting <extra_id_1> last week EOS

Unmasked and masked spans alternate, unmasked first, so the last tokens are
always masked, and only the first sentinel's place is in neither sequence.
"""

from typing import NamedTuple

from jaxtyping import Bool, Int32, Integer
import numpy as np

from upcycle.data.vocabulary import EOS, EXTRA_IDS


class Lengths(NamedTuple):
  raw: int
  inputs: int
  targets: int


def span_counts(
  length: int, noise_density: float, mean_span_length: float
) -> tuple[int, int]:
  """(masked tokens, masked spans) of a text; at least 1, not the whole text."""
  length = max(length, 2)
  masked = min(max(round(length * noise_density), 1), length - 1)
  spans = max(round(masked / mean_span_length), 1)
  return masked, min(spans, masked, length - masked)


def corrupted_length(
  raw: int, noise_density: float, mean_span_length: float
) -> Lengths:
  """What `raw` tokens become, with sentinels and EOS."""
  masked, spans = span_counts(raw, noise_density, mean_span_length)
  return Lengths(raw, raw - masked + spans + 1, masked + spans + 1)


def lengths(
  inputs_length: int,
  noise_density: float = 0.15,
  mean_span_length: float = 3.0,
  extra_ids: int = EXTRA_IDS,
) -> Lengths:
  """The longest text whose corrupted inputs fit, as T5's random_spans_helper.

  512 inputs at density 0.15 and spans of 3 hold 568 tokens; 114 targets.

  Raises:
    ValueError: the inputs are too short for any text, or need more sentinels
      than there are; a density outside (0, 1); spans shorter than one token.
  """
  if not 0 < noise_density < 1 or mean_span_length < 1:
    raise ValueError(
      f'noise_density {noise_density} must lie between 0 and 1, and '
      f'mean_noise_span_length {mean_span_length} be at least 1.'
    )
  if inputs_length < 4:
    raise ValueError(
      f'inputs_length {inputs_length} is too small: a token, a sentinel, a '
      'further token and EOS need 4.'
    )
  # It fits: a masked span has at least as many tokens as its one sentinel.
  best = corrupted_length(inputs_length - 1, noise_density, mean_span_length)
  while True:
    following = corrupted_length(best.raw + 1, noise_density, mean_span_length)
    if following.inputs > inputs_length:
      break
    best = following
  spans = span_counts(best.raw, noise_density, mean_span_length)[1]
  if spans > extra_ids:
    raise ValueError(
      f'inputs_length {inputs_length} needs {spans} sentinels and there are '
      f'{extra_ids}: shorten it, or lengthen mean_noise_span_length.'
    )
  return best


def _segment(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
  """Lengths of `segments` non-empty parts of `items`, all splits as likely."""
  cuts = rng.permutation(items - 1)[: segments - 1] + 1
  cuts.sort()
  return np.diff(cuts, prepend=0, append=items)


def noise_mask(
  length: int,
  rng: np.random.Generator,
  noise_density: float = 0.15,
  mean_span_length: float = 3.0,
) -> Bool[np.ndarray, ' N']:
  """True where a token is masked, as T5's random_spans_noise_mask.

  A text so short that it has one masked span always ends with it.
  """
  masked, spans = span_counts(length, noise_density, mean_span_length)
  runs = np.empty(2 * spans, np.int64)
  runs[0::2] = _segment(max(length, 2) - masked, spans, rng)
  runs[1::2] = _segment(masked, spans, rng)
  return np.repeat(np.arange(2 * spans) % 2 == 1, runs)[:length]


def _replace_spans(
  tokens: np.ndarray, mask: np.ndarray, vocabulary_size: int
) -> Int32[np.ndarray, ' L']:
  """Each run of masked tokens becomes one sentinel, counted down; then EOS."""
  first = mask.copy()
  first[1:] &= ~mask[:-1]
  kept = np.flatnonzero(first | ~mask)
  out = np.empty(len(kept) + 1, np.int32)
  out[:-1] = np.where(
    first[kept], vocabulary_size - np.cumsum(first)[kept], tokens[kept]
  )
  out[-1] = EOS
  return out


def corrupt(
  tokens: Integer[np.ndarray, ' N'],
  mask: Bool[np.ndarray, ' N'],
  vocabulary_size: int,
) -> dict[str, np.ndarray]:
  """Splits tokens by a mask into inputs and targets, int32 of any length."""
  return {
    'inputs': _replace_spans(tokens, mask, vocabulary_size),
    'targets': _replace_spans(tokens, ~mask, vocabulary_size),
  }


def reassemble(
  inputs: Integer[np.ndarray, ' L'],
  targets: Integer[np.ndarray, ' T'],
  pieces: int,
) -> Integer[np.ndarray, ' N']:
  """The tokens that were corrupted: the inverse of `corrupt`.

  Args:
    inputs, targets: one example, with EOS and possibly padding.
    pieces: ids from here on are sentinels.

  Raises:
    ValueError: the sentinels of inputs and targets do not agree.
  """

  def spans(ids):
    ids = np.asarray(ids)
    ids = ids[: int(np.argmax(ids == EOS))]
    marks = np.flatnonzero(ids >= pieces)
    parts = np.split(ids, marks)
    return parts[0], {int(p[0]): p[1:] for p in parts[1:]}

  head, unmasked = spans(inputs)
  none, masked = spans(targets)
  # A text of one token is not masked at all: its targets are a bare sentinel.
  masked = {mark: ids for mark, ids in masked.items() if len(ids)}
  if len(none) or list(unmasked) != list(masked):
    raise ValueError('The sentinels of inputs and targets do not agree.')
  parts = [p for mark in masked for p in (masked[mark], unmasked[mark])]
  return np.concatenate([head, *parts])
