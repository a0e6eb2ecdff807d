# SPDX-License-Identifier: Apache-2.0
"""Font packages and tables of a few examples, as registries have them."""

import functools
import gzip
import pathlib

import matplotlib

from upcycle.data import glyphs
from upcycle.data.image_sources import Example

FONTS = pathlib.Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
ROMAN = (FONTS / 'DejaVuSans.ttf').read_bytes()
BOLD = (FONTS / 'DejaVuSerif-Bold.ttf').read_bytes()
LATIN_ALONE = (FONTS / 'cmr10.ttf').read_bytes()


def faces(**fonts: bytes) -> dict[str, bytes]:
  """The files of a family, by script, weight and style."""
  return {
    f'package/files/tiny-{name.replace("_", "-")}.woff': raw
    for name, raw in fonts.items()
  }


FAMILIES = {
  'book': faces(
    latin_400_normal=ROMAN, greek_400_normal=ROMAN, cyrillic_400_normal=ROMAN
  ),
  'serif': faces(latin_700_normal=BOLD),
  'other': faces(latin_400_normal=BOLD, latin_700_normal=ROMAN),
}


@functools.cache
def drawn(family: str) -> dict[str, Example]:
  return {e.name: e for e in glyphs.draw(sorted(FAMILIES[family].items()))}


def csv(rows: int) -> bytes:
  line = ','.join(['16'] * 64)
  text = ''.join(f'{line},{i % 10}\n' for i in range(rows))
  return gzip.compress(text.encode())
