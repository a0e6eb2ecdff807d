# SPDX-License-Identifier: Apache-2.0
"""Transforms of images, one by one."""

import numpy as np
from PIL import Image, ImageEnhance
import pytest

from upcycle.data import augment, rand_augment


def rng(seed=0):
  return np.random.default_rng(seed)


def picture(height=40, width=60, channels=3, seed=0):
  return rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def test_value_range():
  image = np.array([0, 51, 255], np.uint8)[:, None, None]
  found = augment.value_range(image, rng())
  assert found.dtype == np.float32
  np.testing.assert_allclose(found.ravel(), [-1, -0.6, 1], atol=1e-6)
  found = augment.value_range(image.astype(np.float32), rng(), low=0.0)
  np.testing.assert_allclose(found.ravel(), [0, 0.2, 1], atol=1e-6)


def test_flip_turns_half_of_the_images():
  image, generator = picture(), rng()
  found = [augment.flip(image, generator) for _ in range(200)]
  turned = [np.array_equal(x, image[:, ::-1]) for x in found]
  same = [np.array_equal(x, image) for x in found]
  assert sum(turned) + sum(same) == 200
  assert 70 < sum(turned) < 130


def test_random_shift_moves_everywhere_and_fills_with_zeros():
  image, generator = picture(9, 9, 1), rng()
  found = [augment.random_shift(image, generator, pixels=1) for _ in range(300)]
  padded = np.pad(image, [(1, 1), (1, 1), (0, 0)])
  moved = {
    (y, x): padded[y : y + 9, x : x + 9] for y in range(3) for x in range(3)
  }
  counts = dict.fromkeys(moved, 0)
  for one in found:
    (where,) = [k for k, v in moved.items() if np.array_equal(v, one)]
    counts[where] += 1
  assert min(counts.values()) > 10


def test_inception_crop_takes_parts_of_the_asked_size_and_shape(monkeypatch):
  taken = []
  monkeypatch.setattr(
    augment, '_resize', lambda image, h, w: taken.append(image) or image
  )
  whole = np.arange(90 * 120, dtype=np.float32).reshape(90, 120, 1)
  generator = rng()
  for _ in range(500):
    augment.inception_crop(whole, generator, area=(0.1, 0.8), aspect=(0.5, 2.0))
  areas = np.array([x.size / whole.size for x in taken])
  ratios = np.array([x.shape[1] / x.shape[0] for x in taken])
  assert 0.08 < areas.min() < 0.13 and 0.7 < areas.max() < 0.82
  assert 0.47 < ratios.min() < 0.55 and 1.8 < ratios.max() < 2.1
  corners = {int(x[0, 0, 0]) for x in taken}
  assert len(corners) > 300
  for x in taken:  # a part as it is, not stretched
    steps = x[:, 0, 0], x[0, :, 0]
    assert (np.diff(steps[0]) == 120).all() and (np.diff(steps[1]) == 1).all()


def test_inception_crop_by_default(monkeypatch):
  sizes, taken = set(), []

  def watch(image, *size):
    sizes.add(size)
    taken.append(image)
    return image

  monkeypatch.setattr(augment, '_resize', watch)
  whole, generator = picture(200, 200, 1), rng()
  for _ in range(1000):
    augment.inception_crop(whole, generator)
  assert sizes == {(224, 224)}
  areas = np.array([x.size / whole.size for x in taken])
  ratios = np.array([x.shape[1] / x.shape[0] for x in taken])
  assert 0.045 < areas.min() < 0.07 and areas.max() > 0.9
  assert 0.72 < ratios.min() < 0.78 and 1.28 < ratios.max() < 1.36


def test_inception_crop_reaches_every_corner(monkeypatch):
  monkeypatch.setattr(augment, '_resize', lambda image, h, w: image)
  whole, generator = np.arange(64, dtype=np.float32).reshape(8, 8, 1), rng()
  seen = set()
  for _ in range(200):
    part = augment.inception_crop(whole, generator, area=(0.3, 0.5))
    seen |= set(part.ravel().tolist())
  assert seen >= {0, 7, 56, 63}


def test_inception_crop_falls_back_to_the_whole_image():
  image = np.full((10, 100, 1), 7, np.uint8)
  found = augment.inception_crop(image, rng(), size=16, area=(0.9, 1.0))
  np.testing.assert_array_equal(found, np.full((16, 16, 1), 7, np.uint8))


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_resize_is_bilinear_with_antialiasing(dtype):
  edge = np.zeros((4, 4, 1), dtype)
  edge[:, 2:] = 255
  found = augment.resize(edge, rng(), size=2)[0, :, 0]
  # A triangle of twice the width: weights 3, 3, 1 of 7.
  np.testing.assert_allclose(found, [255 / 7, 255 * 6 / 7], atol=1)


@pytest.mark.parametrize('channels', [1, 2, 3])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_resize_keeps_dtype_channels_and_means(channels, dtype):
  image = picture(channels=channels).astype(dtype)
  found = augment.resize(image, rng(), size=20)
  assert found.shape == (20, 20, channels) and found.dtype == dtype
  means = [x.astype(np.float64).mean((0, 1)) for x in (image, found)]
  np.testing.assert_allclose(*means, atol=1.5)
  small = augment.resize_small(image, rng(), size=20)
  assert small.shape == (20, 30, channels)


def test_resize_of_floats_agrees_with_that_of_bytes():
  image = picture()
  found = augment.resize(image.astype(np.float32), rng(), size=32)
  expected = augment.resize(image, rng(), size=32)
  np.testing.assert_allclose(found, expected, atol=1.01)


def test_central_crop():
  image = picture(7, 10)
  found = augment.central_crop(image, rng(), size=4)
  np.testing.assert_array_equal(found, image[1:5, 3:7])
  with pytest.raises(ValueError, match='7 x 10: resize_small first'):
    augment.central_crop(image, rng(), size=8)


def test_colours():
  grey = picture(channels=1)
  rgb = augment.grey_to_rgb(grey, rng())
  assert rgb.shape == (40, 60, 3)
  np.testing.assert_array_equal(augment.rgb_to_grey(rgb, rng()), grey)
  assert augment.grey_to_rgb(rgb, rng()) is rgb
  assert augment.rgb_to_grey(grey, rng()) is grey
  luma = np.asarray(augment.to_pil(picture()).convert('L'))[..., None]
  found = augment.rgb_to_grey(picture(), rng())
  np.testing.assert_allclose(found, luma.astype(float), atol=1)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('operation', rand_augment.OPERATIONS)
def test_every_operation_of_rand_augment(operation, channels):
  image = augment.to_pil(picture(channels=channels) // 2 + 20)
  found = operation(image, 0.4, rng())
  assert (found.size, found.mode) == (image.size, image.mode)
  colour = getattr(operation, 'args', None) == (
    rand_augment.ImageEnhance.Color,
  )
  changed = found.tobytes() != image.tobytes()
  assert changed or (colour and channels == 1)


@pytest.mark.parametrize(
  'operation, strength, pixel',
  [
    (rand_augment.solarize_add, 1.0, 210),
    (rand_augment.solarize, 0.3, 155),
    (rand_augment.solarize, 0.5, 100),
    (rand_augment.posterize, 0.5, 64),
    (rand_augment.posterize, 1.0, 96),
    (rand_augment.posterize, 3.0, 100),
  ],
)
def test_strengths_of_rand_augment(operation, strength, pixel):
  grey = augment.to_pil(np.full((4, 4, 1), 100, np.uint8))
  assert operation(grey, strength, rng()).getpixel((0, 0)) == pixel


def test_distances_of_rand_augment():
  grey = augment.to_pil(np.full((224, 224, 1), 100, np.uint8))
  hole = np.asarray(rand_augment.cutout(grey, 1.0, rng(5))) == 128
  assert hole.any(0).sum() == hole.any(1).sum() == 80
  moved = np.asarray(rand_augment.translate_x(grey, 1.0, rng())) == 128
  assert moved.all(0).sum() == 100
  small = augment.to_pil(np.full((56, 56, 1), 100, np.uint8))
  moved = np.asarray(rand_augment.translate_y(small, 1.0, rng())) == 128
  assert moved.all(1).sum() == 25
  moved = np.asarray(rand_augment.translate_x(small, 1.0, rng())) == 128
  assert moved.all(0).sum() == 25


def of(colour, side=41):
  return Image.new('L', (side, side), colour)


@pytest.mark.parametrize('axis', [0, 1])
def test_angles_of_shearing(axis):
  operation = (rand_augment.shear_y, rand_augment.shear_x)[axis]
  fills = np.asarray(operation(of(100), 1.0, rng())) == 128
  fills = fills if axis else fills.T
  # Rows move by 0.3 of their distance from the first.
  assert fills.sum(1)[[0, 10, 40]].tolist() == [0, 3, 12]


def test_angles_of_rotation():
  line = of(100, 101)
  line.paste(255, (0, 49, 101, 52))
  found = np.asarray(rand_augment.rotate(line, 1.0, rng())) == 255
  across = round(40 * np.cos(np.pi / 6)), round(40 * np.sin(np.pi / 6))
  ends = [found[50 + s * across[1], 50 + across[0]] for s in (-1, 1)]
  assert sorted(ends) == [False, True]


@pytest.mark.parametrize(
  'operation',
  [
    rand_augment.rotate,
    rand_augment.shear_x,
    rand_augment.shear_y,
    rand_augment.translate_x,
    rand_augment.translate_y,
  ],
)
def test_either_way_is_as_likely(operation):
  image, generator = augment.to_pil(picture(24, 24, 1)), rng()
  found = [operation(image, 0.5, generator).tobytes() for _ in range(200)]
  assert len(set(found)) == 2 and 70 < found.count(found[0]) < 130


@pytest.mark.parametrize('strength, factor', [(0.0, 0.1), (1.0, 1.9)])
@pytest.mark.parametrize(
  'name', ['Color', 'Contrast', 'Brightness', 'Sharpness']
)
def test_enhancements(name, strength, factor):
  function = getattr(ImageEnhance, name)
  (operation,) = (
    x for x in rand_augment.OPERATIONS if getattr(x, 'args', ()) == (function,)
  )
  image = augment.to_pil(picture())
  want = function(image).enhance(factor)
  assert operation(image, strength, rng()).tobytes() == want.tobytes()


@pytest.mark.parametrize(
  'options, strengths',
  [({}, [1.5] * 2), ({'layers': 3, 'magnitude': 4.0}, [0.4] * 3)],
)
def test_magnitude_and_layers(options, strengths, monkeypatch):
  found = []
  note = lambda image, strength, rng: found.append(strength) or image  # noqa: E731
  monkeypatch.setattr(rand_augment, 'OPERATIONS', (note,))
  rand_augment.rand_augment(picture(), rng(), **options)
  assert found == strengths


def test_rand_augment_depends_on_the_generator_alone():
  image = picture()
  first, second, other = (
    rand_augment.rand_augment(image, rng(s), layers=3) for s in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, second)
  assert first.shape == image.shape and first.dtype == np.uint8
  assert not np.array_equal(first, other)
  same = rand_augment.rand_augment(image, rng(), layers=0)
  np.testing.assert_array_equal(same, image)
