# SPDX-License-Identifier: Apache-2.0
"""Any batch of a stream of images, by its number; see `images` for all else."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from upcycle.data.batches import Batch
from upcycle.data.image_sources import Source

Transform = Callable[..., np.ndarray]
ENDLESS = 2**40
# What random numbers are for, so that no two uses draw the same.
ORDER, IMAGE, MIXTURE = range(3)


class _Example(NamedTuple):
  index: int  # in the source
  image: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class Batches(Sequence):
  """The batches of one process, by number.

  A whole batch is one element for Grain: each step of a pipeline by image costs
  microseconds, together more than all that is done to a small image.
  """

  source: Source
  transforms: tuple[Transform, ...]
  positions: slice  # of a batch's rows that are this process's
  batch_size: int
  seed: int
  repeat: bool
  shuffle: bool
  mixup: float | None
  num_labels: int
  threads: int

  def __len__(self) -> int:
    return ENDLESS if self.repeat else -(-len(self.source) // self.batch_size)

  def __getitem__(self, number: int) -> Batch:
    first = number * self.batch_size
    stream = range(first, first + self.batch_size)[self.positions]
    end = first + self.batch_size if self.repeat else len(self.source)
    positions = [p for p in stream if p < end]
    # Not in the pool, whose threads would all shuffle a new epoch.
    images = [self.image(p) for p in positions]
    examples = list(self.map(self.example, positions, images))
    self.check(examples)
    batch = _stack(examples, len(stream), self.first.shape, self.num_labels)
    self.check_values(examples, batch)
    if self.mixup is None:
      return batch
    rng = np.random.default_rng((MIXTURE, self.seed, number))
    return mix(batch, rng.beta(self.mixup, self.mixup))

  @functools.cached_property
  def map(self) -> Callable:
    """The builtin, or that of a pool over the rows of a batch."""
    return map if self.threads == 1 else ThreadPoolExecutor(self.threads).map

  def image(self, position: int) -> int:
    """Which image of the source is at a position of the stream."""
    epoch, i = divmod(position, len(self.source))
    if not self.shuffle:
      return i
    return int(_order(self.seed, epoch, len(self.source))[i])

  def example(self, position: int, i: int) -> _Example:
    """Image i, transformed as it is at a position of the stream."""
    rng = np.random.default_rng((IMAGE, self.seed, position))
    found = self.source[i]
    image = found['image']
    try:
      for transform in self.transforms:
        image = transform(image, rng)
    except ValueError as error:
      raise ValueError(f'{self.source.name}, image {i}: {error}') from error
    return _Example(i, image, found['labels'])

  @functools.cached_property
  def first(self) -> np.ndarray:
    return self.example(0, self.image(0)).image

  def check(self, examples: Sequence[_Example]) -> None:
    """Refuses images and labels that do not fit into a batch."""
    shape = self.first.shape
    sizes = {e.index: e.image.shape for e in examples}
    counts = {e.index: len(e.labels) for e in examples}
    self.refuse(
      [i for i, size in sizes.items() if size != shape],
      f'are not {shape} like the first after the transforms; resize or '
      'crop them, and mind grey and RGB',
    )
    self.refuse(
      [i for i, count in counts.items() if count > self.num_labels],
      f'have more than num_labels {self.num_labels} labels',
    )

  def check_values(self, examples: Sequence[_Example], batch: Batch) -> None:
    """Refuses pixels and labels that would spoil the loss unnoticed."""
    rows = dict(enumerate(e.index for e in examples))
    finite = np.isfinite(batch['images']).all((1, 2, 3))
    known = (batch['labels'] >= 0) & (batch['labels'] < self.source.num_classes)
    self.refuse(
      [i for row, i in rows.items() if not finite[row]],
      'have pixels that are NaN or infinite',
    )
    self.refuse(
      [i for row, i in rows.items() if not known[row].all()],
      f'have labels outside 0 ... {self.source.num_classes - 1}',
    )

  def refuse(self, bad: Sequence[int], why: str) -> None:
    if bad:
      raise ValueError(f'{self.source.name}: images {bad} {why}.')


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
  """The images of an epoch, shuffled."""
  rng = np.random.default_rng((ORDER, seed, epoch))
  return rng.permutation(np.arange(size, dtype=np.uint32))


def _stack(
  examples: Sequence[_Example],
  rows: int,
  shape: tuple[int, ...],
  num_labels: int,
) -> Batch:
  """A batch of so many rows, those that are missing all zeros."""
  batch = {
    'images': np.zeros((rows, *shape), np.float32),
    'labels': np.zeros((rows, num_labels), np.int32),
    'label_weights': np.zeros((rows, num_labels), np.float32),
    'weights': np.zeros(rows, np.float32),
  }
  for row, (_, image, labels) in enumerate(examples):
    batch['images'][row] = image
    batch['labels'][row, : len(labels)] = labels
    batch['label_weights'][row, : len(labels)] = 1
  batch['weights'][: len(examples)] = 1
  return batch


def mix(batch: Batch, share: float) -> Batch:
  """Mixes each row with the one half a batch away, which gets 1 - share.

  Half a batch away is a row of the same process, for any number of them.
  """
  half = len(batch['weights']) // 2
  other = {name: np.roll(array, half, 0) for name, array in batch.items()}
  a, b = np.float32(share), np.float32(1 - share)
  weights = a * batch['label_weights'], b * other['label_weights']
  return {
    'images': a * batch['images'] + b * other['images'],
    'labels': np.concatenate([batch['labels'], other['labels']], 1),
    'label_weights': np.concatenate(weights, 1),
    'weights': batch['weights'],
  }
