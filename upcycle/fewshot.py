# SPDX-License-Identifier: Apache-2.0
"""Few-shot linear evaluation: ridge regression on frozen features.

The paper's transfer number is the mean over five draws of ten images a class.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import functools
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np
from PIL import Image

from upcycle import partition, ridge

# See Fewshot.sets.
Source = Any
Labels = tuple[Int[np.ndarray, ' N'], Int[np.ndarray, ' n']]


def fit_image(image: np.ndarray, size: int, channels: int) -> np.ndarray:
  """An image as the model takes it: resized (bilinear), in [-1, 1].

  Args:
    image: uint8 [H, W, C], C 1 or 3.
    size: of the result's height and width.
    channels: of the result; grey is repeated, colours become grey.

  Raises:
    ValueError: C is another.
  """
  if image.shape[2] not in (1, 3):
    raise ValueError(
      f'it is grey or RGB, with 1 or 3 channels, not {image.shape[2]}.'
    )
  if image.shape[:2] != (size, size) or image.shape[2] > channels:
    pixels = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    pixels = pixels if channels > 1 else pixels.convert('L')
    pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
    image = np.asarray(pixels).reshape(size, size, -1)
  image = np.broadcast_to(image, (size, size, channels))
  return image.astype(np.float32) / 127.5 - 1.0


def crop_image(
  image: np.ndarray, size: int, channels: int, *, resize: int = 256
) -> np.ndarray:
  """The middle of an image resized to a larger square; see `fit_image`.

  vmoe's few-shot evaluation sees 224 pixels of 256. It resizes without
  antialiasing, by TensorFlow, which is not needed here.

  Raises:
    ValueError: the model takes more pixels than the square has.
  """
  if resize < size:
    raise ValueError(
      f'crop_image takes {size} pixels of {resize}: set crop_image.resize.'
    )
  start = (resize - size) // 2
  middle = slice(start, start + size)
  return fit_image(image, resize, channels)[middle, middle]


def l2_sweep(first: int = -10, last: int = 19) -> tuple[float, ...]:
  """Powers of two to choose L2 from; by default those of vmoe."""
  return tuple(2.0**i for i in range(first, last + 1))


@dataclasses.dataclass(frozen=True)
class Fewshot:
  """Few-shot accuracies of a model's frozen features on some sets of images.

  Where experts choose from groups of several images, the features of an image
  depend on its batch: on the images that are drawn, their order, which is
  random but always the same, and the batch size.

  Attributes:
    sets: by name (train, test). A source has `num_classes` and a length, [i] is
      {'image': uint8 [H, W, C], 'labels': [1]}, and labels() are all labels, or
      `labels` is None: then all images are read for them.
    shots: training images a class; where a class has fewer, all.
    l2: what to choose from, once a shot count for all sets; the paper's 1024.
    seeds: draws of training images, over which accuracies are averaged.
    batch_size: images that go through the model at once.
    max_test: test images a set, always the same ones; None: all.
    transform: from (image, size, channels) to float [size, size, channels].
  """

  sets: Mapping[str, tuple[Source, Source]]
  shots: tuple[int, ...] = (1, 5, 10, 25)
  l2: tuple[float, ...] = (1024.0,)
  seeds: int = 5
  batch_size: int = 128
  max_test: int | None = None
  transform: Callable[[np.ndarray, int, int], np.ndarray] = fit_image

  def __post_init__(self):
    numbers = (self.seeds, self.batch_size, self.max_test or 1, *self.l2)
    if not (self.sets and self.shots and self.l2) or (
      min(*numbers, *self.shots) <= 0
    ):
      raise ValueError(f'Few-shot evaluation of nothing: {self}.')

  def __call__(self, model: Any, params: Any) -> dict[str, float]:
    """Mean accuracies over draws, such as '10shot/mnist', and what they took.

    Args:
      model: `model.features()` is the same without its head.
      params: the model's parameters.

    Returns:
      Also 'evaluation_seconds', and '10shot_l2' where there is a choice.

    Raises:
      ValueError: an image has not one label of the set's classes or cannot be
        used, or a class of the test images has no training image.
      FloatingPointError: features that are not finite.
    """
    began = time.perf_counter()
    results = {name: self._results(model, params, name) for name in self.sets}
    values = {}
    for shot in self.shots:
      l2 = ridge.best_l2([*itertools.chain(*results.values())], shot, self.l2)
      if len(self.l2) > 1:
        values[f'{shot}shot_l2'] = l2
      for name, draws in results.items():
        mean = np.mean([accuracies[shot, l2] for accuracies in draws])
        values[f'{shot}shot/{name}'] = float(mean)
    return values | {'evaluation_seconds': time.perf_counter() - began}

  @functools.cached_property
  def _labels(self) -> dict[str, Labels]:
    """Of each set's train and test images."""
    found = {
      name: tuple(_read_labels(name, source) for source in sources)
      for name, sources in self.sets.items()
    }
    for name, labels in found.items():
      _check_classes(name, *labels)
    return found

  def _results(
    self, model: Any, params: Any, name: str
  ) -> list[ridge.Accuracies]:
    """For each draw, accuracies by (shot, L2)."""
    (train, test), (labels, test_labels) = self.sets[name], self._labels[name]
    compute = functools.partial(self._features, model, params, name)
    drawn = [
      {n: ridge.draw(labels, n, seed) for n in self.shots}
      for seed in range(self.seeds)
    ]
    # Only images that are in some draw go through the model.
    largest = [draws[max(self.shots)] for draws in drawn]
    used = np.unique(np.concatenate(largest))
    features = compute(train, used)
    some = _permutation(len(test))[: self.max_test]
    tested = compute(test, some), test_labels[some]

    def evaluate(at: np.ndarray) -> list[float]:
      x = features[np.searchsorted(used, at)]
      fit = ridge.ridge(x, labels[at], train.num_classes)
      return [ridge.accuracy(fit, l2, *tested) for l2 in self.l2]

    return [
      {
        (n, l2): value
        for n, at in draws.items()
        for l2, value in zip(self.l2, evaluate(at), strict=True)
      }
      for draws in drawn
    ]

  def _features(
    self,
    model: Any,
    params: Any,
    name: str,
    source: Source,
    indices: np.ndarray,
  ) -> Float[np.ndarray, 'N D']:
    """Features of some images of a source; the last batch is padded."""
    model = model.features()
    size, channels = model.config.image_size, model.config.channels
    fit = functools.partial(self.transform, size=size, channels=channels)
    read = functools.partial(_image, name, source, fit)
    # Sources are sorted by class: in their order, batches would be of one.
    order = _permutation(len(indices))
    found = []
    with ThreadPoolExecutor() as pool:
      for start in range(0, len(order), self.batch_size):
        batch = indices[order[start : start + self.batch_size]]
        images = np.stack([*pool.map(read, batch.tolist())])
        valid = np.arange(self.batch_size) < len(batch)
        padding = [(0, self.batch_size - len(batch)), *[(0, 0)] * 3]
        features = _apply(model, params, np.pad(images, padding), valid)
        found.append(np.asarray(features)[valid])
    features = np.concatenate(found)
    _check_finite(name, features)
    return features[np.argsort(order)]


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Any, params: Any, images: Any, valid: Any) -> jax.Array:
  features = model.apply({'params': params}, images, valid=valid)
  return partition.whole(features.astype(jnp.float32))


def _permutation(length: int) -> Int[np.ndarray, ' N']:
  """A random order, always the same."""
  return np.random.default_rng(0).permutation(length)


def _image(name: str, source: Source, fit: Callable, i: int) -> np.ndarray:
  try:
    return fit(source[i]['image'])
  except ValueError as error:
    raise ValueError(f'Few-shot set {name!r}, image {i}: {error}') from error


def _read_labels(name: str, source: Source) -> Int[np.ndarray, ' N']:
  if source.labels is not None:
    labels = [np.ravel(x) for x in source.labels()]
  else:
    with ThreadPoolExecutor() as pool:
      found = pool.map(lambda i: source[i]['labels'], range(len(source)))
      labels = [np.ravel(x) for x in found]
  bad = [
    i
    for i, x in enumerate(labels)
    if len(x) != 1 or not 0 <= x[0] < source.num_classes
  ]
  if bad or not labels:
    raise ValueError(
      f'Few-shot set {name!r}: every image needs one label of 0 ... '
      f'{source.num_classes - 1}; of {len(labels)} images {len(bad)} have not, '
      f'such as {bad[:5]}.'
    )
  return np.concatenate(labels)


def _check_finite(name: str, features: Float[np.ndarray, 'N D']) -> None:
  bad = int(np.sum(~np.isfinite(features).all(1)))
  if bad:
    raise FloatingPointError(
      f'Few-shot set {name!r}: the features of {bad} of {len(features)} images '
      'are not finite; the parameters have diverged.'
    )


def _check_classes(name: str, train: np.ndarray, test: np.ndarray) -> None:
  unseen = sorted(set(test.tolist()) - set(train.tolist()))
  if unseen:
    raise ValueError(
      f'Few-shot set {name!r}: classes {unseen} have test images, but no '
      'training image.'
    )
