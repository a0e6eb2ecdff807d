# SPDX-License-Identifier: Apache-2.0
"""A prepared image set: a folder of arrays that are memory mapped.

  manifest.json       classes, counts, where it comes from, sha256 of the files
  {split}_images.npy  uint8 [N, H, W, C]
  {split}_labels.npy  int32 [N]

Labels are indices into the classes, whatever the split.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upcycle.data import manifests
from upcycle.data.image_sources import Example, Source

WHAT = 'image set'
PREPARE = 'run `python scripts/prepare_data.py images`'


def write(
  folder: str | Path,
  splits: dict[str, Sequence[Example]],
  classes: Sequence[str],
  origin: dict[str, Any],
) -> dict[str, Any]:
  """Writes a folder of images, all at once or not at all.

  Args:
    folder: replaced if it exists.
    splits: at least one image in each, all of one size.
    classes: their names; a label is an index into them.
    origin: what identifies the input; kept in the manifest.

  Returns:
    The manifest.

  Raises:
    ValueError: splits without an image, all of them.
  """
  empty = [split for split, examples in splits.items() if not examples]
  if empty:
    raise ValueError(f'{folder}: splits {empty} have no image; add sources.')

  def fill(new: Path) -> dict[str, Any]:
    counts = {}
    for split, examples in splits.items():
      first = examples[0].image
      # Into the file, not to hold all images twice.
      images = np.lib.format.open_memmap(
        new / f'{split}_images.npy',
        mode='w+',
        dtype=first.dtype,
        shape=(len(examples), *first.shape),
      )
      np.stack([e.image for e in examples], out=images)
      labels = np.array([e.label for e in examples], np.int32)
      np.save(new / f'{split}_labels.npy', labels)
      shape = 'x'.join(map(str, images.shape[1:]))
      counts[split] = {'images': len(images), 'shape': shape}
    return {'origin': origin, 'classes': list(classes), 'splits': counts}

  return manifests.write(folder, fill)


def verify(folder: str | Path) -> dict[str, Any]:
  """The manifest of a folder, once all checksums agree with it."""
  return manifests.verify(folder, WHAT, PREPARE)


def local(
  name: str, split: str = 'train', directory: str | Path = 'data'
) -> Source:
  """A set of scripts/prepare_data.py, memory mapped.

  Raises:
    FileNotFoundError: there is none; it says how to prepare one.
    ValueError: files that are damaged, or an unknown split.
  """
  path = Path(directory) / 'images' / name
  found = verify(path)
  if split not in found['splits']:
    raise ValueError(
      f'{path} has no split {split!r}; it has {sorted(found["splits"])}.'
    )
  # A plain view: a memmap takes microseconds for every slice.
  images = np.asarray(np.load(path / f'{split}_images.npy', mmap_mode='r'))
  labels = np.load(path / f'{split}_labels.npy')

  def read(i: int) -> dict[str, np.ndarray]:
    return {'image': images[i], 'labels': labels[i : i + 1]}

  kinds = ('images', 'labels')
  digests = [found['files'][f'{split}_{kind}.npy']['sha256'] for kind in kinds]
  return Source(
    f'{path}, {split}',
    len(found['classes']),
    len(images),
    read,
    lambda: labels,
    ' '.join(digests),
  )
