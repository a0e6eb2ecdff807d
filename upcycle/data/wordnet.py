# SPDX-License-Identifier: Apache-2.0
"""WordNet's synsets, out of its data files (Fellbaum, 1998; wndb(5WN))."""

import functools
from pathlib import Path
import re
from typing import NamedTuple

from upcycle.data import packages

MEMBERS = r'package/dict/data\.(noun|verb|adj|adv)'
# In the order of their numbers, see lexnames(5WN).
NAMES = {
  'adj': 'all pert',
  'adv': 'all',
  'noun': (
    'Tops act animal artifact attribute body cognition communication '
    'event feeling food group location motive object person phenomenon '
    'plant possession process quantity relation shape state substance '
    'time'
  ),
  'verb': (
    'body change cognition communication competition consumption contact '
    'creation emotion motion perception possession social stative weather'
  ),
}
SUPERSENSES = (
  *(f'{part}.{name}' for part in NAMES for name in NAMES[part].split()),
  'adj.ppl',
)
PARTS = {'n': 'noun', 'v': 'verb', 'a': 'adj', 's': 'adj', 'r': 'adv'}


class Pointer(NamedTuple):
  """From a word of a synset to one of another; word 0 is all of them."""

  symbol: str  # '@' to a hypernym, '!' to an antonym
  target: str  # a synset's name
  source_word: int  # from 1
  target_word: int


class Synset(NamedTuple):
  """Words of one meaning, what it is, and sentences in which they occur."""

  name: str  # 'noun.00001740'
  supersense: str
  words: tuple[str, ...]  # in lower case, with blanks
  pointers: tuple[Pointer, ...]
  gloss: str
  sentences: tuple[str, ...]

  @property
  def part(self) -> str:
    """'noun', 'verb', 'adj' or 'adv'."""
    return self.name.partition('.')[0]


@functools.lru_cache(1)  # three tasks read it, one after the other
def read(path: str | Path) -> tuple[Synset, ...]:
  """All synsets of a package of WordNet, in the order of its files."""
  return tuple(
    _synset(line)
    for _, content in packages.members(path, MEMBERS)
    for line in content.decode().splitlines()
    if not line.startswith(' ')  # the licence
  )


def _synset(line: str) -> Synset:
  data, _, text = line.partition(' | ')
  offset, number, kind, count, *fields = data.split()
  end = 2 * int(count, 16)
  words = (re.sub(r'\((a|p|ip)\)$', '', word) for word in fields[:end:2])
  start, stop = end + 1, end + 1 + 4 * int(fields[end])
  pointers = zip(*(fields[start + i : stop : 4] for i in range(4)), strict=True)
  gloss = re.split(r'[;:]?\s*"', text)[0]
  return Synset(
    f'{PARTS[kind]}.{offset}',
    SUPERSENSES[int(number)],
    tuple(word.replace('_', ' ').lower() for word in words),
    tuple(
      Pointer(
        symbol, f'{PARTS[part]}.{to}', int(ends[:2], 16), int(ends[2:], 16)
      )
      for symbol, to, part, ends in pointers
    ),
    gloss.strip(),
    tuple(x.strip() for x in re.findall(r'"([^"]+)"', text)),
  )
