# SPDX-License-Identifier: Apache-2.0
"""From nothing to folders of images: fetch, verify, draw or decode, split."""

from collections.abc import Sequence
from pathlib import Path
import time
from typing import Any

from rich.console import Console
from rich.progress import (
  MofNCompleteColumn,
  Progress,
  SpinnerColumn,
  TimeElapsedColumn,
)
from rich.table import Table

from upcycle.data import glyphs, image_arrays, image_sets, manifests, packages
from upcycle.data.image_sets import ImageSet


def prepare(
  directory: str | Path = 'data',
  *,
  sets: Sequence[str] | None = None,
  families: str | Path | int | None = None,
  console: Console | None = None,
) -> list[Path]:
  """Makes DIRECTORY/images/NAME for each set, or checks the one that is there.

  A folder holds {split}_images.npy, uint8 [N, H, W, C], {split}_labels.npy,
  int32 [N], and a manifest with classes, counts, sources and licence.

  Args:
    directory: cache of packages and images.
    sets: names of `image_sets.image_sets`; None means all, without npm those
      that need none.
    families: the file of a list of families like `glyphs.FAMILIES`; or how
      many of that list to train on; None means all of it.
    console: where progress and the final table go.

  Returns:
    The folders, for `images.local`.

  Raises:
    ValueError: unknown sets or families, or a checksum differs.
    packages.MissingClient: sets that were asked for need npm and there is none.
  """
  console = console or Console()
  begin = time.perf_counter()
  directory = Path(directory)
  known = image_sets.image_sets(_families(families))
  chosen = {name: known[name] for name in _chosen(sets, known)}
  found = {
    name: manifests.existing(
      directory / 'images' / name,
      _origin(row),
      image_arrays.verify,
      console.print,
    )
    for name, row in chosen.items()
  }
  wanted = {name: chosen[name] for name in chosen if found[name] is None}
  reachable = _reachable(wanted, directory, sets is not None, console)
  found |= _build(directory, reachable, console)
  _report(found, console)
  seconds = time.perf_counter() - begin
  console.print(f'{directory / "images"}, {seconds:.1f} s.')
  return [directory / 'images' / name for name, m in found.items() if m]


def _families(families: str | Path | int | None) -> list[glyphs.Family]:
  if families is None or isinstance(families, int):
    rows = glyphs.families(glyphs.FAMILIES)
  else:
    return glyphs.families(families)
  train = [f for f in rows if f.split == 'train']
  if families is not None and not 0 < families <= len(train):
    raise ValueError(
      f'{families} families: the list has {len(train)} to train on; give 1 to '
      f'{len(train)}, or the file of a longer list.'
    )
  return train[:families] + [f for f in rows if f.split != 'train']


def _chosen(sets: Sequence[str] | None, known: dict) -> Sequence[str]:
  if sets is None:
    return list(known)
  if not sets:
    raise ValueError(f'No set is named; there are {sorted(known)}.')
  unknown = [name for name in sets if name not in known]
  if unknown:
    raise ValueError(f'There are no sets {unknown}; there are {sorted(known)}.')
  return sets


def _origin(row: ImageSet) -> dict[str, Any]:
  return {
    'licence': row.licence,
    'sources': {f'{p.name} {p.version}': p.sha256 for p in row.packages},
    **(row.made or {}),
  }


def _reachable(
  wanted: dict[str, ImageSet], directory: Path, strict: bool, console: Console
) -> dict[str, ImageSet]:
  """The sets whose packages are here or can be fetched; says what is not."""
  missing = [
    name
    for name, row in wanted.items()
    for p in row.packages
    if not packages.has_client(p.kind)
    and not packages.target(p, directory / 'packages').exists()
  ]
  if missing:
    names = ', '.join(dict.fromkeys(missing))
    message = f'npm is not installed, and the sets {names} come by it.'
    if strict:
      raise packages.MissingClient(message)
    console.print(message)
  return {name: row for name, row in wanted.items() if name not in missing}


def _build(directory, sets: dict[str, ImageSet], console) -> dict[str, dict]:
  columns = (SpinnerColumn(), '{task.description}', MofNCompleteColumn())
  needed = [p for row in sets.values() for p in row.packages]
  with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
    task = progress.add_task('fetch packages', total=len(needed))
    paths = packages.fetch_all(
      needed, directory / 'packages', lambda _: progress.advance(task)
    )
    found = {}
    for name, row in sets.items():
      task = progress.add_task(f'images {name}', total=1)
      splits = row.load([paths[p] for p in row.packages])
      folder = directory / 'images' / name
      found[name] = image_arrays.write(
        folder, splits, row.classes, _origin(row)
      )
      progress.update(task, completed=1)
  return found


def _report(found: dict[str, dict | None], console: Console) -> None:
  table = Table('set', 'classes', 'split', 'images', 'shape', 'licence')
  for name, manifest in found.items():
    for split, row in manifest['splits'].items() if manifest else ():
      table.add_row(
        name,
        f'{len(manifest["classes"])}',
        split,
        f'{row["images"]:,}',
        row['shape'],
        manifest['origin']['licence'],
      )
  console.print(table)
