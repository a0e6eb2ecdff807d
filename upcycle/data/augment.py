# SPDX-License-Identifier: Apache-2.0
"""What is done to one image: functions of (image [H, W, C], rng).

Pixels are uint8, or floats of the same range, until `value_range`, the last.
Resizing is bilinear with antialiasing, on the bytes that were decoded. V-MoE
resizes by tf.image.resize without it; here no TensorFlow runs, and what is made
smaller does not alias.
"""

import math

from jaxtyping import Float, Float32, UInt8
import numpy as np
from PIL import Image

Pixels = UInt8[np.ndarray, 'H W C'] | Float32[np.ndarray, 'H W C']
# Of another size, or with other channels.
Others = UInt8[np.ndarray, 'h w c'] | Float32[np.ndarray, 'h w c']
Rng = np.random.Generator


def value_range(
  image: Pixels, rng: Rng, *, low: float = -1.0, high: float = 1.0
) -> Float32[np.ndarray, 'H W C']:
  """From 0 ... 255 to low ... high, in float32."""
  del rng
  return image * np.float32((high - low) / 255) + np.float32(low)


def flip(image: Pixels, rng: Rng) -> Pixels:
  """Left to right, half of the time."""
  return image[:, ::-1] if rng.random() < 0.5 else image


def random_shift(image: Pixels, rng: Rng, *, pixels: int = 2) -> Pixels:
  """Moves by up to so many pixels each way; what comes in is 0."""
  # rng.integers takes ten times as long for two numbers.
  y, x = (int((2 * pixels + 1) * u) - pixels for u in rng.random(2))
  height, width = image.shape[:2]
  out = np.zeros_like(image)
  out[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)] = image[
    max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)
  ]
  return out


def inception_crop(
  image: Pixels,
  rng: Rng,
  *,
  size: int = 224,
  area: tuple[float, float] = (0.05, 1.0),
  aspect: tuple[float, float] = (0.75, 1.33),
) -> Others:
  """A random part of the image, resized to a square (Szegedy et al., 2015).

  As TensorFlow's sample_distorted_bounding_box draws it: the aspect ratio is
  uniform, and so is the height among those that the areas allow.

  Args:
    image: of any size.
    rng: of the part.
    size: pixels of a side.
    area: smallest and largest part of the image.
    aspect: smallest and largest width / height.
  """
  height, width = image.shape[:2]
  for _ in range(100):
    ratio = rng.uniform(*aspect)
    low, high = (math.sqrt(a * height * width / ratio) for a in area)
    high = min(high, height, width / ratio)
    if low <= high:
      h = max(round(rng.uniform(low, high)), 1)
      w = min(max(round(h * ratio), 1), width)
      top, left = rng.integers((height - h + 1, width - w + 1))
      return _resize(image[top : top + h, left : left + w], size, size)
  return _resize(image, size, size)


def resize(image: Pixels, rng: Rng, *, size: int = 224) -> Others:
  """To a square, whatever the aspect ratio was."""
  del rng
  return _resize(image, size, size)


def resize_small(image: Pixels, rng: Rng, *, size: int = 256) -> Others:
  """The smaller side to `size`, the aspect ratio stays."""
  del rng
  height, width = image.shape[:2]
  factor = size / min(height, width)
  return _resize(image, round(height * factor), round(width * factor))


def central_crop(image: Pixels, rng: Rng, *, size: int = 224) -> Others:
  """The square in the middle; a ValueError if the image is smaller."""
  del rng
  height, width = image.shape[:2]
  if min(height, width) < size:
    raise ValueError(
      f'central_crop to {size} of an image of {height} x {width}: resize_small '
      'first.'
    )
  top, left = (height - size) // 2, (width - size) // 2
  return image[top : top + size, left : left + size]


def grey_to_rgb(image: Pixels, rng: Rng) -> Others:
  """Three equal channels of one; an image of three stays as it is."""
  del rng
  return np.repeat(image, 3, -1) if image.shape[-1] == 1 else image


def rgb_to_grey(image: Pixels, rng: Rng) -> Others:
  """The luma of ITU-R 601 of three channels; an image of one stays as it is."""
  del rng
  if image.shape[-1] == 1:
    return image
  luma: Float[np.ndarray, 'H W'] = image @ np.array([0.299, 0.587, 0.114])
  grey = np.rint(luma) if image.dtype == np.uint8 else luma
  return grey[..., None].astype(image.dtype)


def to_pil(image: UInt8[np.ndarray, 'H W C']) -> Image.Image:
  """An image of one or three channels as Pillow's."""
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pil(image: Image.Image) -> UInt8[np.ndarray, 'H W C']:
  """Pixels of a grey or RGB image of Pillow's."""
  pixels = np.asarray(image)
  return pixels[..., None] if pixels.ndim == 2 else pixels


def _resize(image: Pixels, height: int, width: int) -> Others:
  if image.shape[:2] == (height, width):
    return image
  bilinear = Image.Resampling.BILINEAR
  if image.dtype == np.uint8 and image.shape[-1] in (1, 3):
    return from_pil(to_pil(image).resize((width, height), bilinear))
  channels = [
    np.asarray(Image.fromarray(c).resize((width, height), bilinear))
    for c in np.moveaxis(image.astype(np.float32), -1, 0)
  ]
  return np.stack(channels, -1).astype(image.dtype)
