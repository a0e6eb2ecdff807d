# SPDX-License-Identifier: Apache-2.0
"""Text-to-text tasks out of WordNet: senses in context, classes, relations."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
import itertools
from pathlib import Path
import re
from typing import NamedTuple

from upcycle.data import wordnet
from upcycle.data.text_splits import Example, split_of
from upcycle.data.wordnet import Synset

WORD = re.compile(r'[a-z]+(-[a-z]+)*')
PAIRS_OF_A_WORD = 4
# Of a pair of words, by the symbol of WordNet's pointer.
RELATIONS = {'@': 'hypernym', '!': 'antonym'}


class Use(NamedTuple):
  """A sentence in which a word has the meaning of a synset."""

  synset: Synset
  sentence: str


def wic(path: Path) -> Iterator[Example]:
  """Has a word the same meaning in two sentences? Words in context.

  After Pilehvar and Camacho-Collados, 2019: two sentences of one synset, or of
  two that are not linked and, where WordNet tells such apart, of other
  supersenses. Of every word there are as many of each, so that the word itself
  says nothing.
  """
  for (word, part), uses in _uses(wordnet.read(path)).items():
    pairs: dict[str, list[str]] = {'True': [], 'False': []}
    for one, two in itertools.combinations(uses, 2):
      answer = _same_meaning(one, two)
      if answer and one.sentence != two.sentence:
        pairs[answer].append(
          f'wic pos: {part} word: {word} sentence1: {one.sentence} '
          f'sentence2: {two.sentence}'
        )
    count = min(PAIRS_OF_A_WORD, *map(len, pairs.values()))
    for answer, texts in pairs.items():
      texts.sort(key=lambda text: sha256(text.encode()).hexdigest())
      yield from (Example(word, text, answer) for text in texts[:count])


def _uses(
  synsets: Iterable[Synset],
) -> dict[tuple[str, str], list[Use]]:
  """Of every word and part of speech, the sentences with a form of it."""
  uses = collections.defaultdict(list)
  for synset in synsets:
    words = {w: _forms(w) for w in synset.words if WORD.fullmatch(w)}
    for sentence in synset.sentences:
      there = set(re.findall(r'[a-z]+(?:-[a-z]+)*', sentence.lower()))
      for word, forms in words.items():
        if forms & there:
          uses[word, synset.part].append(Use(synset, sentence))
  return uses


def _forms(word: str) -> set[str]:
  """Regular inflections, and some words that are none."""
  stems = {word: 's es d ed ing', word + word[-1]: 'ed ing'}
  stems |= {word[:-1]: 'ing'} if word.endswith('e') else {}
  stems |= {word[:-1]: 'ies ied'} if word.endswith('y') else {}
  return {word} | {s + end for s, ends in stems.items() for end in ends.split()}


def _same_meaning(one: Use, two: Use) -> str | None:
  """The answer, or None where it is not clear enough to ask."""
  a, b = one.synset, two.synset
  if a.name == b.name:
    return 'True'
  linked = any(p.target == b.name for p in a.pointers) or any(
    p.target == a.name for p in b.pointers
  )
  # All adverbs and nearly all adjectives are of one supersense.
  alike = a.supersense == b.supersense and a.part in ('noun', 'verb')
  return None if linked or alike else 'False'


def supersense(path: Path) -> Iterator[Example]:
  """The supersense of what a gloss describes, of 45 (lexnames(5WN))."""
  for s in wordnet.read(path):
    yield Example(s.words[0], f'supersense gloss: {s.gloss}', s.supersense)


def relation(path: Path) -> Iterator[Example]:
  """Is the second word a hypernym, an antonym or a synonym of the first?

  Antonyms, the fewest, are grouped, so that few pairs have their words in two
  splits: these are left out.
  """
  pairs = set(_related(wordnet.read(path)))
  groups = _groups([(a, b) for a, b, kind in pairs if kind == 'antonym'])
  for a, b, kind in pairs:
    group = groups.get(a, a)
    if split_of(group) == split_of(groups.get(b, b)):
      yield Example(group, f'relation word1: {a} word2: {b}', kind)


def _related(
  synsets: Sequence[Synset],
) -> Iterator[tuple[str, str, str]]:
  """Two different words, none of them a name, and how the second is related."""
  words = {s.name: s.words for s in synsets}
  for synset in synsets:
    pairs = [(a, b, 'synonym') for a in synset.words for b in synset.words]
    for p in synset.pointers:
      if p.symbol in RELATIONS:
        first = synset.words[slice(*_range(p.source_word))]
        second = words[p.target][slice(*_range(p.target_word))]
        kind = RELATIONS[p.symbol]
        pairs += [(a, b, kind) for a in first for b in second]
    for a, b, kind in pairs:
      if a != b and WORD.fullmatch(a) and WORD.fullmatch(b):
        yield a, b, kind


def _range(word: int) -> tuple[int | None, int | None]:
  """Where a pointer's word is, or all words are."""
  return (word - 1, word) if word else (None, None)


def _groups(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
  """The name of the group of each word, where the words of a pair are one."""
  groups: dict[str, set[str]] = {}
  for a, b in pairs:
    both = groups.get(a, {a}) | groups.get(b, {b})
    groups |= dict.fromkeys(both, both)
  return {word: min(group) for word, group in groups.items()}
