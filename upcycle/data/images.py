# SPDX-License-Identifier: Apache-2.0
"""Batches of labelled images from any source, by Grain.

A batch is a dict of arrays, B rows a process:
  images         float32 [B, H, W, C]  from -1 to 1
  labels         int32 [B, K]          classes of an image
  label_weights  float32 [B, K]        1 for a label, 0 for none; mixup: shares
  weights        float32 [B]           0 for a row that fills up a last batch

The stream depends on the seed alone: with n processes, process i gets images
i, i + n, ... of it. Iterators have get_state() and set_state(), a small dict,
and go on exactly, or refuse to where the images are others than before.
"""

from collections.abc import Sequence

import grain
import numpy as np

from upcycle.data.batches import shard
from upcycle.data.image_arrays import local
from upcycle.data.image_batches import Batches, Transform
from upcycle.data.image_folders import folder
from upcycle.data.image_sources import Source, part
from upcycle.data.image_state import Stream
from upcycle.data.image_tfds import tfds

__all__ = ['Source', 'batches', 'folder', 'local', 'part', 'tfds']


def batches(
  source: Source,
  transforms: Sequence[Transform],
  *,
  batch_size: int,
  seed: int = 0,
  repeat: bool = True,
  shuffle: bool = True,
  mixup: float | None = None,
  num_labels: int = 1,
  num_classes: int | None = None,
  threads: int = 1,
  shard_index: int | None = None,
  shard_count: int | None = None,
) -> Stream:
  """Batches of a source, every epoch in its own order, transformed anew.

  For evaluation take repeat=False and shuffle=False: always the same batches,
  the last one filled up with rows of weight 0, so that sums are exact.

  Args:
    source: `local`, `folder` or `tfds`.
    transforms: of `augment`, first to last; the last is `value_range`.
    batch_size: rows over all processes.
    seed: of order and transforms, not negative.
    repeat: whether to go on without end.
    shuffle: whether to shuffle images, anew every epoch.
    mixup: alpha (Zhang et al., 2018): a batch draws its share from
      Beta(alpha, alpha), and an image is mixed with the one half a batch away;
      K doubles. None mixes none.
    num_labels: K, most labels of an image.
    num_classes: of the model, to refuse a source that has more; None: not.
    threads: that read and transform the rows of a batch, two batches ahead;
      one makes 40,000 images of 32 x 32 a second.
    shard_index: this process; None asks JAX.
    shard_count: processes; None asks JAX.

  Raises:
    ValueError: no image, or arguments that do not fit together; while reading,
      images that cannot be used, by index and source.
  """
  index, count, rows = shard(batch_size, shard_index, shard_count)
  if not len(source):
    raise ValueError(f'{source.name} holds no image.')
  if num_classes is not None and source.num_classes > num_classes:
    raise ValueError(
      f'{source.name} has {source.num_classes} classes, the model only '
      f'{num_classes}: labels would be outside of it. Set num_classes of both.'
    )
  if mixup is not None and (rows % 2 or mixup <= 0 or not repeat):
    raise ValueError(
      f'mixup {mixup} of {rows} rows a process with repeat={repeat}: it takes '
      'a positive alpha, an even number of rows and repeat=True.'
    )
  made = Batches(
    source,
    tuple(transforms),
    positions=slice(index, batch_size, count),
    batch_size=batch_size,
    seed=seed,
    repeat=repeat,
    shuffle=shuffle,
    mixup=mixup,
    num_labels=num_labels,
    threads=threads,
  )
  _check_values(source, made.first)
  # Batches are large: few are held, and threads share one.
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  dataset = grain.MapDataset.source(made).to_iter_dataset(options)
  known = {'count': len(source), 'digest': source.digest}
  return Stream(dataset, source.name, known)


def _check_values(source: Source, image: np.ndarray) -> None:
  """Refuses images that did not go through `value_range`, by the first."""
  found = f'{source.name} and its transforms make'
  if image.dtype != np.float32:
    raise ValueError(
      f'{found} {image.dtype}, not float32: the last transform is '
      '`value_range`.'
    )
  low, high = image.min(), image.max()
  if max(-low, high) > 1.5:
    raise ValueError(
      f'{found} values from {low:.4g} to {high:.4g}, not from -1 to 1: the '
      'last transform is `value_range`.'
    )
