# SPDX-License-Identifier: Apache-2.0
"""From files of a package to labelled images, one function a kind of file."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from upcycle.data.cleaning import Files
from upcycle.data.image_folders import rgb
from upcycle.data.image_sources import Example

# Without 'Component', five tones of skin.
EMOJI_CATEGORIES = (
  'Activities',
  'Animals & Nature',
  'Flags',
  'Food & Drink',
  'Objects',
  'People & Body',
  'Smileys & Emotion',
  'Symbols',
  'Travel & Places',
)


def mnist(files: Files) -> list[Example]:
  """JSON files, one a digit: the pixels of all its images, from 0 to 1."""
  return [
    Example(f'{digit}/{i}', image, digit)
    for name, raw in files
    for digit in [int(Path(name).stem)]
    for i, image in enumerate(_pixels(json.loads(raw)['data'], 255, 28))
  ]


def table(files: Files, scale: float, size: int) -> list[Example]:
  """A compressed CSV file: the pixels of an image, then its digit, a line."""
  ((_, raw),) = files
  rows = np.loadtxt(gzip.decompress(raw).decode().splitlines(), delimiter=',')
  images = _pixels(rows[:, :-1], scale, size)
  return [
    Example(str(i), image, int(digit))
    for i, (image, digit) in enumerate(zip(images, rows[:, -1], strict=True))
  ]


def emoji(files: Files) -> list[Example]:
  """PNG files on white, labelled by their category in emoji.json."""
  content = {Path(name).name: raw for name, raw in files}
  examples = []
  for row in json.loads(content['emoji.json']):
    if row['category'] in EMOJI_CATEGORIES:
      image = rgb(Image.open(io.BytesIO(content[row['image']])))
      label = EMOJI_CATEGORIES.index(row['category'])
      examples.append(Example(row['unified'], image, label))
  return examples


def _pixels(values, scale: float, size: int) -> np.ndarray:
  """Rows of values as grey uint8 images [N, size, size, 1]."""
  grey = np.rint(scale * np.asarray(values)).astype(np.uint8)
  return grey.reshape(-1, size, size, 1)
