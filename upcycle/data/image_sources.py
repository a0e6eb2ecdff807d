# SPDX-License-Identifier: Apache-2.0
"""Labelled images by index: what a source is.

An element is {'image': uint8 [H, W, C], 'labels': integers [k]}.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

from jaxtyping import UInt8
import numpy as np


class Example(NamedTuple):
  """One image; the name tells it from all others of its set."""

  name: str
  image: UInt8[np.ndarray, 'H W C']
  label: int


@dataclasses.dataclass(frozen=True, repr=False)
class Source(Sequence):
  """Images of a split.

  Attributes:
    name: for errors.
    num_classes: labels are below it.
    length: number of images.
    read: from an index to an element.
    labels: the labels of all images, where that is cheaper than to read them.
    digest: what tells the images from others, as far as that is cheap.
  """

  name: str
  num_classes: int
  length: int
  read: Callable[[int], dict[str, np.ndarray]]
  labels: Callable[[], Sequence[Any]] | None = None
  digest: str = ''

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    return self.read(i)


def part(source: Source, every: int, *, others: bool = False) -> Source:
  """Every n-th image of a source, or all others: to evaluate on what is alike.

  Args:
    source: with its images in an order of their own, such as by class.
    every: n; the first image is one of the n-th.
    others: whether it is those that are left.

  Raises:
    ValueError: nothing would be left.
  """
  index = np.arange(len(source))
  index = index[(index % every > 0) == others]
  if not len(index):
    raise ValueError(f'{source.name}: every {every}-th image leaves none.')
  which = f'{"all but " if others else ""}every {every}-th'

  def labels() -> list[Any]:
    found = source.labels()
    return [found[i] for i in index]

  return dataclasses.replace(
    source,
    name=f'{source.name}, {which}',
    length=len(index),
    read=lambda i: source.read(int(index[i])),
    labels=source.labels and labels,
    digest=f'{source.digest} {which}',
  )
