# SPDX-License-Identifier: Apache-2.0
"""Splits of text-to-text examples, by hash of what must not be in two."""

import collections
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple

from upcycle.data import corpora

# Up to which share of all hashes each goes.
SHARES = {'validation': 0.1, 'test': 0.25, 'train': 1.0}
CAPS = {'train': 20_000, 'validation': 1_000, 'test': 2_000}


class Example(NamedTuple):
  """A text and its answer; all examples of a group are in one split."""

  group: str
  inputs: str
  targets: str


Splits = dict[str, list[Example]]


def split_of(group: str) -> str:
  """'train', 'validation' or 'test', the same for all tasks that say `group`.

  A word that one task holds out is held out by all: they may be trained
  together.
  """
  return next(s for s, x in SHARES.items() if corpora.held_out(group, x))


def split(examples: Iterable[Example], balanced: bool) -> Splits:
  """Splits in an order of their own, each input once, no more than CAPS.

  Args:
    examples: of inputs with several answers none is taken.
    balanced: whether to take as many of every class, that is, of every target.
  """
  splits: Splits = {name: [] for name in CAPS}
  for example in _agreed(examples):
    splits[split_of(example.group)].append(example)
  for name, found in splits.items():
    found.sort(key=lambda e: sha256(e.inputs.encode()).hexdigest())
    kept = _balanced(found, CAPS[name]) if balanced else found
    splits[name] = kept[: CAPS[name]]
  return splits


def _agreed(examples: Iterable[Example]) -> list[Example]:
  """One example an input, unless there is another that contradicts it."""
  found: dict[str, Example] = {}
  contradicted = set()
  for example in examples:
    first = found.setdefault(example.inputs, example)
    if first.targets != example.targets:
      contradicted.add(example.inputs)
  return [e for e in found.values() if e.inputs not in contradicted]


def _balanced(examples: Sequence[Example], cap: int) -> list[Example]:
  """The first of every class, as many as of the smallest."""
  counts = collections.Counter(e.targets for e in examples)
  most = min([cap // max(len(counts), 1), *counts.values()])
  taken: collections.Counter[str] = collections.Counter()
  kept = []
  for example in examples:
    if taken[example.targets] < most:
      taken[example.targets] += 1
      kept.append(example)
  return kept
