# SPDX-License-Identifier: Apache-2.0
"""Labelled images out of data sets of TFDS, without TensorFlow."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import io
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
import numpy as np

from upcycle.data import image_folders
from upcycle.data.image_sources import Source


def tfds(
  name: str, split: str = 'train', data_dir: str | Path | None = None
) -> Source:
  """A data set of TFDS with an 'image', and a 'label' or 'labels'.

  It is read at random, so it has to be prepared as ArrayRecord:
  `tfds build NAME --file_format=array_record`. Images are RGB, on white if they
  are transparent, or grey where the data set says so.

  Args:
    name: as in TFDS, e.g. 'imagenet2012', 'cifar10', or of a builder of one's
      own, prepared in data_dir.
    split: as in TFDS, e.g. 'train', 'train[:99%]'.
    data_dir: where it was prepared; None is the default of TFDS.

  Raises:
    ImportError: the extra `tf` is not installed.
    ValueError: there is no such data set or split, it is not prepared so, or
      has no images of 8 bits or labels; while reading, what is no image.
  """
  data = _opened(name, split, data_dir)
  features = data.dataset_info.features
  key, num_classes = _label(name, features)
  decode = _decoder(name, features['image'])
  source = f'TFDS {name}, {split}'

  def read(i: int) -> dict[str, np.ndarray]:
    row = data[i]
    try:
      image = decode(row['image'])
    except image_folders.UNREADABLE as error:
      raise ValueError(
        f'{source}, image {i} cannot be decoded: {error}'
      ) from error
    return {'image': image, 'labels': np.atleast_1d(row[key])}

  def labels() -> list[Any]:
    with ThreadPoolExecutor() as pool:
      return list(pool.map(lambda i: data[i][key], range(len(data))))

  return Source(source, num_classes, len(data), read, labels)


def _opened(name: str, split: str, data_dir: str | Path | None) -> Any:
  """The examples of a split; their images stay the bytes of files."""
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ImportError(
      'Data sets of TFDS need tensorflow-datasets, of the extra `tf`: '
      "pip install 'upcycle[tf]'"
    ) from error
  where = data_dir or "TFDS's own folder"
  try:
    builder = tensorflow_datasets.builder(name, data_dir=data_dir)
  except Exception as error:  # TFDS has many, and tells what is missing
    raise ValueError(
      f'TFDS has no data set {name!r}, nor has {where}: {_first_line(error)} '
      'Give another, prepare it by a builder of your own, or read image files '
      'by images.folder.'
    ) from error
  # TFDS would decode without looking at what kind of image it is.
  encoded = {'image': tensorflow_datasets.decode.SkipDecoding()}
  try:
    return builder.as_data_source(split, decoders=encoded)
  except (NotImplementedError, KeyError) as error:  # another format; nothing
    raise ValueError(
      f'TFDS {name!r} is not prepared as ArrayRecord in {where}: run '
      f'`tfds build {name} --file_format=array_record`.'
    ) from error
  except Exception as error:
    raise ValueError(
      f'TFDS {name!r} in {where} has no split {split!r} that can be read: '
      f'{_first_line(error)}'
    ) from error


def _first_line(error: Exception) -> str:
  return str(error).strip().partition('\n')[0][:300]


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


def _decoder(
  name: str, feature: Any
) -> Callable[[bytes], UInt8[np.ndarray, 'H W C']]:
  """From the bytes of an image to its pixels, grey or RGB."""
  if feature.np_dtype != np.uint8 or not hasattr(feature, 'encoding_format'):
    raise ValueError(
      f"The 'image' of TFDS {name!r} is {feature!r}; take a data set with an "
      'Image of uint8.'
    )
  grey = feature.shape[-1] == 1

  def decode(raw: bytes) -> UInt8[np.ndarray, 'H W C']:
    with image_folders.opened(io.BytesIO(raw)) as image:
      if grey:
        return np.asarray(image.convert('L'))[..., None]
      return image_folders.rgb(image)

  return decode
