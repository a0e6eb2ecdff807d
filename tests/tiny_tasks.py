# SPDX-License-Identifier: Apache-2.0
"""Two text-to-text tasks out of a package of one file of words."""

from hashlib import sha256

from tests import tiny_text
from tests.tiny_packages import package, tarball
from upcycle.data import packages, text_metrics, text_splits, text_tasks
from upcycle.data.text_splits import Example

WORDS = sorted({w for text in tiny_text.documents(40) for w in text.split()})
CONTENT = tarball({'words.txt': '\n'.join(WORDS).encode()})
LETTERS = tuple('abcdefghijklmnop')


def _words(path):
  ((_, content),) = packages.members(path, r'words\.txt')
  return content.decode().split()


def late(path):
  """Is the first letter in the second half of all?"""
  for word in _words(path):
    target = 'yes' if word[0] in LETTERS[8:] else 'no'
    yield Example(word, f'late word: {word}', target)


def letter(path):
  """The first letter."""
  for word in _words(path):
    yield Example(word, f'letter word: {word}', word[0])


def tasks(folder) -> dict[str, text_tasks.Task]:
  """A table like TASKS; `folder` is for the package while sums are taken."""
  path = folder / 'words.tgz'
  path.write_bytes(CONTENT)
  both = (text_metrics.accuracy, text_metrics.f1)
  rows = {
    'late': (late, ('no', 'yes'), both, True),
    'letter': (letter, LETTERS, (text_metrics.accuracy,), False),
  }
  return {
    name: text_tasks.Task(
      package('npm', CONTENT),
      build,
      labels,
      'none',
      _digest(text_splits.split(build(path), balanced)),
      metrics,
      balanced,
    )
    for name, (build, labels, metrics, balanced) in rows.items()
  }


def _digest(splits) -> str:
  content = b''.join(text_tasks.lines(splits[s]) for s in text_splits.CAPS)
  return sha256(content).hexdigest()
