# SPDX-License-Identifier: Apache-2.0
"""RandAugment (Cubuk et al., 2020), by Pillow.

Operations and their strengths are those of the authors' code, which vision
transformers were trained with. An operation is a function of (image, strength,
rng); the strength is magnitude / 10.
"""

import functools

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from upcycle.data.augment import Pixels, Rng, from_pil, to_pil

GREY = 128  # of what comes in from outside
# Translations and holes are meant for images of so many pixels.
SIDE = 224


def _signed(value: float, rng: Rng) -> float:
  return value if rng.random() < 0.5 else -value


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
  """Output (x, y) comes from input (a x + b y + c, d x + e y + f)."""
  fill = (GREY,) * len(image.getbands())
  return image.transform(
    image.size, Image.Transform.AFFINE, matrix, fillcolor=fill
  )


def rotate(image, strength, rng):
  fill = (GREY,) * len(image.getbands())
  return image.rotate(_signed(30 * strength, rng), fillcolor=fill)


def shear_x(image, strength, rng):
  return _affine(image, 1, _signed(0.3 * strength, rng), 0, 0, 1, 0)


def shear_y(image, strength, rng):
  return _affine(image, 1, 0, 0, _signed(0.3 * strength, rng), 1, 0)


def translate_x(image, strength, rng):
  pixels = 100 * strength * image.width / SIDE
  return _affine(image, 1, 0, _signed(pixels, rng), 0, 1, 0)


def translate_y(image, strength, rng):
  pixels = 100 * strength * image.height / SIDE
  return _affine(image, 1, 0, 0, 0, 1, _signed(pixels, rng))


def cutout(image, strength, rng):
  """A grey square around a random pixel, as far as it is inside."""
  half = round(40 * strength * min(image.size) / SIDE)
  x, y = (int(n * rng.random()) for n in image.size)
  out = image.copy()
  if half:
    box = (x - half, y - half, x + half - 1, y + half - 1)
    ImageDraw.Draw(out).rectangle(box, (GREY,) * len(image.getbands()))
  return out


def solarize_add(image, strength, rng):
  """Makes dark pixels lighter."""
  del rng
  added = int(110 * strength)
  table = [min(i + added, 255) if i < 128 else i for i in range(256)]
  return image.point(table * len(image.getbands()))


def posterize(image, strength, rng):
  del rng
  return ImageOps.posterize(image, min(int(4 * strength), 8))


def solarize(image, strength, rng):
  del rng
  return ImageOps.solarize(image, int(256 * strength))


def _plain(function, image, strength, rng):
  """One that has no strength."""
  del strength, rng
  return function(image)


def _enhance(function, image, strength, rng):
  del rng
  return function(image).enhance(1.8 * strength + 0.1)


OPERATIONS = (
  functools.partial(_plain, ImageOps.autocontrast),
  functools.partial(_plain, ImageOps.equalize),
  functools.partial(_plain, ImageOps.invert),
  rotate,
  posterize,
  solarize,
  functools.partial(_enhance, ImageEnhance.Color),
  functools.partial(_enhance, ImageEnhance.Contrast),
  functools.partial(_enhance, ImageEnhance.Brightness),
  functools.partial(_enhance, ImageEnhance.Sharpness),
  shear_x,
  shear_y,
  translate_x,
  translate_y,
  cutout,
  solarize_add,
)


def rand_augment(
  image: Pixels,
  rng: Rng,
  *,
  layers: int = 2,
  magnitude: float = 15.0,
) -> UInt8[np.ndarray, 'H W C']:
  """So many random operations one after another, all of one magnitude.

  Args:
    image: of one or three channels.
    rng: of the operations.
    layers: N of the paper, 1 to 3.
    magnitude: M of the paper; 10 is AutoAugment's strongest.

  Raises:
    ValueError: the image is not uint8.
  """
  if image.dtype != np.uint8:
    raise ValueError(
      f'rand_augment takes uint8, not {image.dtype}: put it before value_range.'
    )
  out = to_pil(image)
  for i in rng.integers(len(OPERATIONS), size=layers):
    out = OPERATIONS[i](out, magnitude / 10, rng)
  return from_pil(out)
