# SPDX-License-Identifier: Apache-2.0
"""Labelled images out of folders of files, one folder a class."""

from concurrent.futures import ThreadPoolExecutor
import hashlib
import io
from pathlib import Path

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageOps

from upcycle.data.image_sources import Source

# What Pillow raises for files that it cannot read.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def folder(path: str | Path, split: str = 'train') -> Source:
  """Files PATH/SPLIT/CLASS/*, as RGB; classes are sorted by name.

  Every file is opened, not decoded, to see whether it is an image. Images are
  turned as their EXIF data say, and what is transparent is white.

  Raises:
    FileNotFoundError: no such folder, or no classes in it.
    ValueError: classes without images, among those of any split, files that
      are no images, and images of more than 8 bits a channel: all of them.
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
  labels = np.array([label for _, label in files], np.int32)
  _check(root, classes, [file for file, _ in files], labels)

  def read(i: int) -> dict[str, np.ndarray]:
    file, label = files[i]
    try:
      with opened(file) as image:
        pixels = rgb(ImageOps.exif_transpose(image))
    except UNREADABLE as error:
      raise ValueError(f'{file} cannot be decoded: {error}') from error
    return {'image': pixels, 'labels': np.array([label])}

  names = '\n'.join(str(file.relative_to(root)) for file, _ in files)
  digest = hashlib.sha256(names.encode()).hexdigest()
  return Source(
    str(root), len(classes), len(files), read, lambda: labels, digest
  )


def opened(file: Path | io.BytesIO) -> Image.Image:
  """An image, not yet decoded; a ValueError for more than 8 bits a channel."""
  image = Image.open(file)
  if image.mode.startswith(('I', 'F')):
    image.close()
    raise ValueError(f'{image.mode}, not 8 bits a channel')
  return image


def rgb(image: Image.Image) -> UInt8[np.ndarray, 'H W 3']:
  """Pixels of an image of any mode of 8 bits, on white if it is transparent."""
  if image.has_transparency_data:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image)
  return np.asarray(image.convert('RGB'))


def _check(
  root: Path, classes: list[str], files: list[Path], labels: np.ndarray
) -> None:
  with ThreadPoolExecutor() as pool:
    faults = [x for x in pool.map(_fault, files) if x]
  faults += [
    f'{root / name}: no images'
    for label, name in enumerate(classes)
    if label not in labels
  ]
  if faults:
    raise ValueError(
      f'{len(faults)} faults in {root}; mend or remove:\n  '
      + '\n  '.join(faults)
    )


def _seen(path: Path) -> bool:
  return not path.name.startswith('.')


def _fault(file: Path) -> str | None:
  """What is wrong with a file, going by its first bytes."""
  try:
    with opened(file):
      return None
  except UNREADABLE as error:
    return f'{file}: {error}'
