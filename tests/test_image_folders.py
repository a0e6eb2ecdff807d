# SPDX-License-Identifier: Apache-2.0
"""Folders of image files: what is read, and what is refused."""

import numpy as np
from PIL import Image
import pytest

from upcycle.data import images


@pytest.fixture
def pictures(tmp_path):
  """Two classes of two images in two splits; a hidden file is none."""
  for split in ('train', 'val'):
    for label, name in enumerate(('cat', 'dog')):
      folder = tmp_path / split / name
      folder.mkdir(parents=True)
      for i in range(2):
        grey = np.full((8, 8), 100 * label + i, np.uint8)
        Image.fromarray(grey).save(folder / f'{i}.png')
  (tmp_path / 'train' / 'cat' / '.hidden').touch()
  return tmp_path


def test_a_folder(pictures):
  data = images.folder(pictures, 'train')
  assert (len(data), data.num_classes) == (4, 2)
  found = [(r['image'].shape, r['image'].max(), r['labels'][0]) for r in data]
  shape = (8, 8, 3)
  assert found == [
    (shape, 0, 0),
    (shape, 1, 0),
    (shape, 100, 1),
    (shape, 101, 1),
  ]


def test_all_faults_of_a_folder_are_listed(pictures):
  root = pictures / 'train'
  (root / 'cat' / 'note.txt').write_text('no image')
  (root / 'dog' / 'empty.png').touch()
  (root / 'ant').mkdir()
  (pictures / 'val' / 'bee').mkdir()
  with pytest.raises(ValueError, match=f'4 faults in {root}') as error:
    images.folder(pictures, 'train')
  for fault in (
    'note.txt: ',
    'empty.png: ',
    'ant: no images',
    'bee: no images',
  ):
    assert fault in str(error.value)


def test_a_truncated_file_is_named(pictures):
  file = pictures / 'train' / 'cat' / '1.png'
  Image.fromarray(np.eye(90, dtype=np.uint8) * 255).save(file)
  file.write_bytes(file.read_bytes()[:-40])
  data = images.folder(pictures, 'train')
  with pytest.raises(ValueError, match=f'{file} cannot be decoded'):
    data[1]


@pytest.mark.parametrize('split', ['test', 'train/cat'])
def test_no_folder(pictures, split):
  with pytest.raises(FileNotFoundError, match=f'{split}/CLASS'):
    images.folder(pictures / 'nowhere', split)


@pytest.fixture
def one(tmp_path):
  """Saves an image as the only one of a folder; returns that folder."""

  def save(image, name='a.png', **options):
    (tmp_path / 'train/cat').mkdir(parents=True)
    image.save(tmp_path / 'train/cat' / name, **options)
    return tmp_path

  return save


def pixels(path):
  return images.folder(path)[0]['image']


def test_colours_stay(one):
  image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
  np.testing.assert_array_equal(pixels(one(Image.fromarray(image))), image)


def test_what_is_transparent_is_white(one):
  image = np.zeros((1, 3, 4), np.uint8)
  image[..., 0] = 200
  image[0, :, 3] = 0, 255, 51
  found = pixels(one(Image.fromarray(image)))
  assert found.tolist() == [[[255, 255, 255], [200, 0, 0], [244, 204, 204]]]


def test_transparent_palettes_and_other_modes(one):
  image = Image.new('P', (2, 1))
  image.putpalette([10, 20, 30, 40, 50, 60])
  image.putpixel((1, 0), 1)
  found = pixels(one(image, transparency=1))
  assert found.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_images_are_turned_as_exif_says(one):
  image = Image.new('RGB', (3, 2))
  image.putpixel((0, 0), (255, 0, 0))
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned to the right
  found = pixels(one(image, exif=exif))
  assert found.shape == (3, 2, 3)
  assert found[0, 1].tolist() == [255, 0, 0]


@pytest.mark.parametrize('dtype', [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_refused(one, dtype):
  path = one(Image.fromarray(np.full((4, 4), 300, dtype)), 'deep.tiff')
  with pytest.raises(ValueError, match=r'deep\.tiff: .*, not 8 bits a channel'):
    images.folder(path)


def test_a_broken_chunk_is_named(one):
  noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
  path = one(Image.fromarray(noise))
  file = path / 'train/cat/a.png'
  content = file.read_bytes()
  # The second chunk of pixels: the file can be opened.
  at = content.rindex(b'IDAT')
  assert at > content.index(b'IDAT')
  file.write_bytes(content[:at] + b'\xff\xff\xff\xff' + content[at + 4 :])
  with pytest.raises(ValueError, match=r'a\.png cannot be decoded: broken PNG'):
    images.folder(path)[0]


def test_other_files_are_another_digest(pictures):
  first = images.folder(pictures)
  assert images.folder(pictures).digest == first.digest != ''
  assert first.labels().tolist() == [row['labels'][0] for row in first]
  (pictures / 'train/cat/0.png').rename(pictures / 'train/cat/2.png')
  assert images.folder(pictures).digest != first.digest
