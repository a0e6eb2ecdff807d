# SPDX-License-Identifier: Apache-2.0
"""Labelled images by index: folders of files, TFDS.

An element is {'image': uint8 [H, W, C], 'labels': integers [k]}.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True, repr=False)
class Source(Sequence):
  """Images of a split; the name is for errors."""

  name: str
  num_classes: int
  length: int
  read: Callable[[int], dict[str, np.ndarray]]

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    return self.read(i)


def folder(path: str | Path, split: str = 'train') -> Source:
  """Files PATH/SPLIT/CLASS/*, as RGB; classes are sorted by name.

  Every file is opened, not decoded, to see whether it is an image.

  Raises:
    FileNotFoundError: no such folder, or no classes in it.
    ValueError: classes without images, among those of any split, and files
      that are no images: all of them.
  """
  root = Path(path) / split
  classes = sorted({p.name for p in Path(path).glob('*/*/') if _seen(p)})
  if not root.is_dir() or not classes:
    raise FileNotFoundError(f'There is no folder {root}/CLASS with images.')
  files = [
    (file, label)
    for label, name in enumerate(classes)
    for file in sorted((root / name).glob('*'))
    if _seen(file)
  ]
  with ThreadPoolExecutor() as pool:
    faults = [x for x in pool.map(_fault, [file for file, _ in files]) if x]
  filled = {label for _, label in files}
  faults += [
    f'{root / name}: no images'
    for label, name in enumerate(classes)
    if label not in filled
  ]
  if faults:
    raise ValueError(
      f'{len(faults)} faults in {root}; mend or remove:\n  '
      + '\n  '.join(faults)
    )

  def read(i: int) -> dict[str, np.ndarray]:
    file, label = files[i]
    try:
      with Image.open(file) as image:
        pixels = np.asarray(image.convert('RGB'))
    except OSError as error:
      raise ValueError(f'{file} cannot be decoded: {error}') from error
    return {'image': pixels, 'labels': np.array([label])}

  return Source(str(root), len(classes), len(files), read)


def _seen(path: Path) -> bool:
  return not path.name.startswith('.')


def _fault(file: Path) -> str | None:
  """What is wrong with a file, going by its first bytes."""
  try:
    with Image.open(file):
      return None
  except OSError as error:
    return f'{file}: {error}'


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
  try:
    data = tensorflow_datasets.data_source(
      name, split=split, data_dir=data_dir, download=False
    )
  except Exception as error:  # TFDS has many, and tells what is missing
    raise ValueError(
      f'TFDS {name!r}, split {split!r} in {data_dir or "its own folder"} '
      f'cannot be read; `tfds build {name} --file_format=array_record` '
      f'prepares it. {type(error).__name__}: {str(error).strip()[:200]}'
    ) from error
  features = data.dataset_info.features
  key = 'labels' if 'labels' in features else 'label'
  if not {'image', key} <= set(features):
    raise ValueError(
      f"TFDS {name!r} has {sorted(features)}; 'image' and 'label' or 'labels' "
      'are needed.'
    )

  def read(i: int) -> dict[str, np.ndarray]:
    row = data[i]
    return {'image': row['image'], 'labels': np.atleast_1d(row[key])}

  return Source(
    f'TFDS {name}, {split}', _classes(features[key]), len(data), read
  )


def _classes(feature: Any) -> int:
  """Of a ClassLabel, or of a sequence of them."""
  return getattr(feature, 'feature', feature).num_classes
