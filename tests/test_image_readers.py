# SPDX-License-Identifier: Apache-2.0
"""What glyphs, emoji and digits look like as they are drawn or read."""

import io
import json

import numpy as np
from PIL import Image
import pytest

from tests.tiny_fonts import FAMILIES, LATIN_ALONE, ROMAN, csv, drawn, faces
from upcycle.data import glyphs, image_readers


def ink(image: np.ndarray) -> tuple[int, int, int, int]:
  """First and last row, first and last column that are not black."""
  rows, columns = (np.flatnonzero(image.any(axes)) for axes in ((1, 2), (0, 2)))
  return rows[0], rows[-1], columns[0], columns[-1]


def test_classes():
  assert len(set(glyphs.CLASSES)) == len(glyphs.CLASSES) == 182


def test_the_list_of_families():
  rows = glyphs.families()
  splits = [row.split for row in rows]
  assert [splits.count(s) for s in glyphs.SPLITS] == [120, 8, 2]
  assert {row.package.kind for row in rows} == {'npm'}


def test_bad_families_are_listed(tmp_path):
  digest = '0' * 64
  path = tmp_path / 'families.txt'
  lines = [
    '# none',
    '  ',
    f'a 1 train {digest}',
    f'a 2 train {digest}',
    'b 1 test x',
  ]
  path.write_text('\n'.join(lines))
  message = r"'a 1 train.*'a 2 train.*'b 1 test x', 'no family of validation"
  with pytest.raises(ValueError, match=message):
    glyphs.families(path)


def test_a_face_has_all_its_classes():
  found = drawn('book')
  assert [e.label for e in found.values()] == [
    glyphs.CLASSES.index(name[-1]) for name in found
  ]
  assert len(found) == 182
  assert drawn('serif').keys() == {
    f'700-normal/{c}' for c in glyphs.SCRIPTS['latin']
  }


def test_glyphs_are_centred_with_a_margin():
  for name, example in drawn('book').items():
    image = example.image
    assert image.shape == (32, 32, 1)
    assert image.dtype == np.uint8
    assert image.max() > 100, name
    top, bottom, left, right = ink(image)
    assert min(top, left) >= 2 and max(bottom, right) <= 29, name
    assert abs(top + bottom - 31) <= 1 and abs(left + right - 31) <= 1, name


def height(family, name):
  top, bottom, *_ = ink(drawn(family)[name].image)
  return bottom - top + 1


def test_glyphs_of_a_face_are_in_proportion():
  assert height('book', '400-normal/c') < 0.85 * height('book', '400-normal/C')


def test_capitals_of_all_faces_are_equally_high():
  for name in ('book', '400-normal/H'), ('serif', '700-normal/H'):
    assert height(*name) in (19, 20, 21)


def test_what_is_too_large_is_made_smaller(monkeypatch):
  monkeypatch.setattr(glyphs, 'CAPITAL_HEIGHT', 40)
  found = {e.name[-1]: e.image for e in glyphs.draw(FAMILIES['serif'].items())}
  for character in 'HWi':
    top, bottom, left, right = ink(found[character])
    assert abs(max(bottom - top, right - left) + 1 - 28) <= 1
    assert abs(top + bottom - 31) <= 1 and abs(left + right - 31) <= 1


def test_what_a_font_lacks_is_left_out():
  files = faces(latin_400_normal=LATIN_ALONE, cyrillic_400_normal=LATIN_ALONE)
  found = [e.name[-1] for e in glyphs.draw(files.items())]
  assert not set(found) & set(glyphs.SCRIPTS['cyrillic'])
  assert len(found) > 50


def test_faces_without_latin_letters_are_refused():
  files = faces(greek_400_normal=ROMAN, latin_700_normal=ROMAN)
  with pytest.raises(ValueError, match=r"Latin letters: \['400-normal'\]"):
    list(glyphs.draw(files.items()))


def png(colour) -> bytes:
  out = io.BytesIO()
  Image.new('RGBA', (4, 4), colour).save(out, 'png')
  return out.getvalue()


EMOJI = {
  'package/emoji.json': json.dumps(
    [
      {'unified': f'{i:X}', 'image': f'{i:x}.png', 'category': category}
      for i, category in enumerate(['Flags', 'Component', 'Objects'])
    ]
  ).encode(),
  'package/img/google/64/0.png': png((255, 0, 0, 255)),
  'package/img/google/64/1.png': png((0, 255, 0, 255)),
  'package/img/google/64/2.png': png((0, 0, 255, 0)),
}


def test_emoji_are_on_white_without_components():
  first, second = image_readers.emoji(EMOJI.items())
  assert (first.name, second.name) == ('0', '2')
  assert [image_readers.EMOJI_CATEGORIES[e.label] for e in (first, second)] == [
    'Flags',
    'Objects',
  ]
  assert first.image[0, 0].tolist() == [255, 0, 0]
  assert second.image[0, 0].tolist() == [255, 255, 255]


def digit(value: float) -> bytes:
  return json.dumps({'data': [value] * (2 * 28 * 28)}).encode()


def test_mnist():
  files = [('src/digits/3.json', digit(0.5)), ('src/digits/7.json', digit(1))]
  found = image_readers.mnist(files)
  assert [(e.name, e.label) for e in found] == [
    ('3/0', 3), ('3/1', 3), ('7/0', 7), ('7/1', 7)
  ]  # fmt: skip
  assert found[0].image.shape == (28, 28, 1)
  assert found[0].image[5, 5, 0] == 128
  assert found[2].image[5, 5, 0] == 255


def test_tables_of_digits():
  found = image_readers.table([('d.csv.gz', csv(3))], scale=255 / 16, size=8)
  assert [(e.name, e.label) for e in found] == [('0', 0), ('1', 1), ('2', 2)]
  np.testing.assert_array_equal(found[0].image, np.full((8, 8, 1), 255))
