# SPDX-License-Identifier: Apache-2.0
"""The state of a stream of images, and whether it belongs to its data."""

from collections.abc import Iterator
import dataclasses
from typing import Any

import grain

from upcycle.data.batches import Batch


@dataclasses.dataclass(frozen=True)
class Stream:
  """Batches whose iterators refuse to go on with other images.

  Attributes:
    dataset: the batches.
    name: of the images, for errors.
    images: what tells them from others; goes into the state.
  """

  dataset: grain.IterDataset
  name: str
  images: dict[str, Any]

  def __iter__(self) -> '_Iterator':
    return _Iterator(iter(self.dataset), self)


@dataclasses.dataclass(frozen=True)
class _Iterator(Iterator):
  batches: grain.DatasetIterator
  stream: Stream

  def __next__(self) -> Batch:
    return next(self.batches)

  def get_state(self) -> dict[str, Any]:
    return {**self.batches.get_state(), 'images': self.stream.images}

  def set_state(self, state: dict[str, Any]) -> None:
    position = dict(state)
    images = position.pop('images', self.stream.images)
    if images != self.stream.images:
      raise ValueError(
        f'{self.stream.name} is not what the run began with: it has '
        f'{self.stream.images}, the run had {images}. Prepare those images '
        'again, or give another MODEL_DIR.'
      )
    self.batches.set_state(position)
