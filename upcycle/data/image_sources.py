# SPDX-License-Identifier: Apache-2.0
"""Labelled images by index: what a source is, and those of TFDS.

An element is {'image': uint8 [H, W, C], 'labels': integers [k]}.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
from pathlib import Path
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


def tfds(
  name: str, split: str = 'train', data_dir: str | Path | None = None
) -> Source:
  """A data set of TFDS with an 'image', and a 'label' or 'labels'.

  It is read at random and without TensorFlow, so it has to be prepared as
  ArrayRecord: `tfds build NAME --file_format=array_record`.

  Args:
    name: as in TFDS, e.g. 'imagenet2012', 'cifar10', 'imagenet21k'.
    split: as in TFDS, e.g. 'train', 'train[:99%]'.
    data_dir: where it was prepared; None is the default of TFDS.

  Raises:
    ImportError: the extra `tf` is not installed.
    ValueError: it is not prepared so, or has no images or labels.
  """
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ImportError(
      'Data sets of TFDS need tensorflow-datasets, of the extra `tf`: '
      "pip install 'upcycle[tf]'"
    ) from error

  def opened(**options):
    return tensorflow_datasets.data_source(
      name, split=split, data_dir=data_dir, download=False, **options
    )

  try:
    data = opened()
  except Exception as error:  # TFDS has many, and tells what is missing
    raise ValueError(
      f'TFDS {name!r}, split {split!r} in {data_dir or "its own folder"} '
      f'cannot be read; `tfds build {name} --file_format=array_record` '
      f'prepares it. {type(error).__name__}: {str(error).strip()[:200]}'
    ) from error
  key, num_classes = _label(name, data.dataset_info.features)

  def read(i: int) -> dict[str, np.ndarray]:
    row = data[i]
    return {'image': row['image'], 'labels': np.atleast_1d(row[key])}

  def labels() -> list[Any]:
    rows = opened(decoders={'image': tensorflow_datasets.decode.SkipDecoding()})
    with ThreadPoolExecutor() as pool:
      return list(pool.map(lambda i: rows[i][key], range(len(rows))))

  return Source(f'TFDS {name}, {split}', num_classes, len(data), read, labels)


def _label(name: str, features: Any) -> tuple[str, int]:
  """Which feature has the labels, and the number of classes."""
  key = 'labels' if 'labels' in features else 'label'
  if not {'image', key} <= set(features):
    raise ValueError(
      f"TFDS {name!r} has {sorted(features)}; 'image' and 'label' or 'labels' "
      'are needed.'
    )
  # Of a ClassLabel, or of a sequence of them.
  label = getattr(features[key], 'feature', features[key])
  num_classes = getattr(label, 'num_classes', None)
  if num_classes is None:
    raise ValueError(
      f'The {key!r} of TFDS {name!r} is {label!r}, which has no classes; take '
      'a data set with a ClassLabel.'
    )
  return key, num_classes
