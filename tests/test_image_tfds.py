# SPDX-License-Identifier: Apache-2.0
"""Data sets of TFDS: real ones, tiny, as they lie on a disk."""

import io
import sys
import warnings

import numpy as np
from PIL import Image
import pytest

with warnings.catch_warnings():  # its own
  warnings.simplefilter('ignore')
  import tensorflow_datasets as tfds
  from tensorflow_datasets import features

from upcycle.data import augment, images

RED = (200, 0, 0)


def encoded(image: Image.Image, kind: str = 'png', **options) -> io.BytesIO:
  out = io.BytesIO()
  image.save(out, kind, **options)
  return io.BytesIO(out.getvalue())


def palette() -> Image.Image:
  image = Image.new('P', (2, 1))
  image.putpalette([10, 20, 30, *RED])
  image.putpixel((1, 0), 1)
  return image


# Each two pixels, and what is seen in them.
KINDS = [
  (encoded(Image.new('RGB', (2, 1), RED)), [RED, RED]),
  (encoded(Image.new('L', (2, 1), 7)), [(7, 7, 7)] * 2),
  (encoded(palette()), [(10, 20, 30), RED]),
  (encoded(palette(), 'gif'), [(10, 20, 30), RED]),
  (encoded(palette(), transparency=1), [(10, 20, 30), (255, 255, 255)]),
  (encoded(Image.new('RGBA', (2, 1), (*RED, 0))), [(255, 255, 255)] * 2),
  (encoded(Image.new('LA', (2, 1), (0, 204))), [(51, 51, 51)] * 2),
  (encoded(Image.new('CMYK', (2, 1), (0, 255, 255, 0)), 'tiff'),
   [(255, 0, 0)] * 2),
]  # fmt: skip


def store(folder, name, rows, kinds, file_format='array_record'):
  """Prepares a data set as a builder of one's own does."""

  # Known to the process that prepares it alone, not where it is read.
  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      found = features.FeaturesDict(kinds)
      return tfds.core.DatasetInfo(builder=self, features=found)

    def _split_generators(self, _):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(rows)

  Builder.name = name
  Builder(data_dir=folder, file_format=file_format).download_and_prepare()


def label(count: int = 9) -> features.ClassLabel:
  return features.ClassLabel(num_classes=count)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Data sets by the kinds of their features, and one in another format."""
  path = tmp_path_factory.mktemp('tfds')
  image = KINDS[0][0].getvalue()
  row = lambda **other: {'image': io.BytesIO(image), **other}  # noqa: E731
  kinds = [{'image': x, 'label': i} for i, (x, _) in enumerate(KINDS)]
  one = {'image': features.Image(), 'label': label()}
  many = {'image': features.Image(), 'labels': features.Sequence(label(7))}
  grey = {'image': features.Image(shape=(None, None, 1)), 'label': label()}
  deep = features.Image(shape=(None, None, 1), dtype=np.uint16)
  noise = np.zeros((2, 2, 1), np.uint16)
  store(path, 'kinds', kinds, one)
  store(path, 'many', [row(labels=[3, 6])], many)
  store(path, 'grey', [row(label=1)], grey)
  store(path, 'broken', [{'image': io.BytesIO(image[:-30]), 'label': 0}], one)
  store(path, 'text', [{'text': 'a'}], {'text': features.Text()})
  store(path, 'number', [row(label=0.5)], one | {'label': np.float32})
  store(path, 'deep', [{'image': noise, 'label': 0}], one | {'image': deep})
  store(path, 'records', [row(label=1)], one, 'tfrecord')
  return path


def read(data: images.Source) -> dict[int, np.ndarray]:
  """The pixels of all images by their labels."""
  rows = [data[i] for i in range(len(data))]
  return {int(row['labels'][0]): row['image'] for row in rows}


def test_every_kind_of_image_is_rgb(folder):
  data = images.tfds('kinds', data_dir=folder)
  assert (len(data), data.num_classes) == (len(KINDS), 9)
  found = read(data)
  assert sorted(found) == list(range(len(KINDS)))
  for i, (_, want) in enumerate(KINDS):
    assert found[i].dtype == np.uint8
    assert found[i].tolist() == [[list(pixel) for pixel in want]], i


def test_an_image_of_one_channel_is_grey(folder):
  image = images.tfds('grey', data_dir=folder)[0]['image']
  assert image.tolist() == [[[60], [60]]], '0.299 of 200'


def test_slices_and_labels(folder):
  first, last = (
    images.tfds('kinds', f'train[{part}]', folder) for part in (':3', '3:')
  )
  parts = [list(read(part)) for part in (first, last)]
  assert [len(part) for part in parts] == [3, len(KINDS) - 3]
  assert {*parts[0], *parts[1]} == set(range(len(KINDS)))
  assert [list(map(int, part.labels())) for part in (first, last)] == parts


def test_batches_of_several_labels(folder):
  data = images.tfds('many', data_dir=folder)
  assert data.num_classes == 7
  assert np.ravel(data.labels()[0]).tolist() == [3, 6]
  dataset = images.batches(
    data, (augment.value_range,), batch_size=1, num_labels=2, threads=2
  )
  batch = next(iter(dataset))
  assert batch['labels'].tolist() == [[3, 6]]
  assert batch['label_weights'].tolist() == [[1, 1]]


def test_a_damaged_image_is_named(folder):
  data = images.tfds('broken', data_dir=folder)
  with pytest.raises(ValueError, match='TFDS broken, train, image 0 cannot be'):
    data[0]


@pytest.mark.parametrize(
  'name, split, message',
  [
    ('text', 'train', r"\['text'\]; 'image' and 'label'"),
    ('number', 'train', r"'label' of .* has no classes; take a"),
    ('deep', 'train', r"'image' of .*uint16.*; take .* an Image of uint8"),
    ('records', 'train', 'run `tfds build records --file_format=array_record`'),
    ('cifar10', 'train', 'run `tfds build cifar10 --file_format=array_record`'),
    ('kinds', 'test', r"'kinds' in .* has no split 'test' .*\['train'\]"),
    ('kinds', 'train[50:60]', r'no split .*\[50:60\] incompatible with 8 ex'),
    ('imagenet21k', 'train', "no data set 'imagenet21k', .*by images.folder"),
    ('cifar10:9.9.9', 'train', r'no data set .* only: 3\.0\.2'),
  ],
)
def test_what_cannot_be_read_is_said(folder, name, split, message):
  with pytest.raises(ValueError, match=message) as error:
    images.tfds(name, split, folder)
  assert ('tfds build' in str(error.value)) == ('tfds build' in message)
  assert len(str(error.value)) < 500


def test_without_tfds(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(ImportError, match='the extra `tf`'):
    images.tfds('kinds')
