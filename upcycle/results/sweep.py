# SPDX-License-Identifier: Apache-2.0
"""Sweeps: lists of runs, their commands, and what came of them.

A run is {'name', 'config', 'bindings'}: the gin file and what is set beside it.
A binding that is a run itself stands for its MODEL_DIR: a checkpoint to start
from, trained once for all that ask for it. Further entries, such as arm and
seed, come back in its row of results.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import hashlib
import json
from pathlib import Path
import re
from typing import Any

import numpy as np

from upcycle.results import spent
from upcycle.results.metrics import read

Run = Mapping[str, Any]
KEYS = 'name', 'config', 'bindings'
ROOT = Path(__file__).resolve().parents[2]
POINTS = 25  # of a curve in a row of results, at most


def check(runs: Sequence[Run]) -> None:
  """Refuses runs without a name, config or bindings, and names that repeat.

  Nor may an entry be None, which would not be found again: in results, null is
  NaN.
  """
  faults = [f'{run} has no {key}' for run in runs for key in KEYS - run.keys()]
  names = [run.get('name') for run in runs]
  faults += [f'{n!r} is there twice' for n in {*names} if names.count(n) > 1]
  faults += [
    f'{key} of {run.get("name")!r} is None'
    for run in runs
    for key, value in run.items()
    if value is None
  ]
  if faults:
    raise ValueError('No such sweep: ' + '; '.join(sorted(faults)) + '.')


def model_dir(run: Run, root: Path = ROOT) -> str:
  """A folder of a run's own, named by its config and a hash of its settings.

  Runs of the same settings share it, whatever experiment they are of: those of
  the gin file and all that it includes, the bindings, and the runs in them.
  """
  bindings = dict(sorted(_resolved(run, root).items()))
  settings = json.dumps([_settings(root, run['config']), bindings])
  digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
  return f'runs/sweeps/{Path(run["config"]).stem}_{digest}'


def parents(run: Run) -> Iterator[Run]:
  """The runs that a run starts from, those of these first."""
  for value in run['bindings'].values():
    if isinstance(value, Mapping) and 'config' in value:
      yield from parents(value)
      yield value


def command(run: Run, root: Path = ROOT) -> list[str]:
  """What trains a run, after the name of the Python to do it with.

  Values are written as Python literals, gin references (@, %) as they are.
  """
  bindings = {**_resolved(run, root), 'MODEL_DIR': model_dir(run, root)}
  return [
    'scripts/train.py',
    f'--gin_file={run["config"]}',
    *(f'--gin.{name}={_literal(x)}' for name, x in bindings.items()),
  ]


def entries(run: Run, root: Path = ROOT) -> dict[str, Any]:
  """A run as its row of results has it, with its MODEL_DIR."""
  found = {**run, 'bindings': _resolved(run, root)}
  return json.loads(json.dumps(found | {'model_dir': model_dir(run, root)}))


def find(
  run: Run, rows: Iterable[Mapping], root: Path = ROOT
) -> Mapping | None:
  """The row of results that has all entries of a run, if there is one."""
  wanted = entries(run, root).items()
  same = (row for row in rows if all(row.get(k) == v for k, v in wanted))
  return next(same, None)


def result(folder: str | Path) -> dict[str, Any] | None:
  """What came of a run: its last metrics by split, cost, curves and totals.

  Metrics are named 'eval/loss'; those of single layers are left out. `curves`
  has, for those that are a quality, [steps, FLOPs, seconds, value] of
  evaluations, see `spent.Run`. `FLOPs`, `tokens` or `images` and `seconds` are
  of the whole run. One that diverged has no last metrics, but an 'error'.

  Returns:
    None for a run that has not made all of its steps: it then writes its peak
    memory.
  """
  there = (Path(folder) / 'metrics.jsonl').exists()
  rows = read(folder) if there else []
  costs = [row for row in rows if row['split'] == 'cost']
  error = [row['error'] for row in costs[-1:] if 'error' in row]
  if not (error or any('peak_memory' in row for row in costs)):
    return None
  final = {
    name: value
    for name, value in _final(rows).items()
    if not name.startswith(('train/', 'eval/')) or name.count('/') == 1
  }
  evaluated = {row['split'] for row in rows} - {'train', 'cost'}
  curves = {
    name: _thinned(curve)
    for name, curve in (spent.of_rows(rows).curves if evaluated else {}).items()
    if name in final
  }
  if error:
    final.pop('cost/error')
    final = {k: v for k, v in final.items() if k.startswith('cost/')}
    final['error'] = error[0]
  return {**_totals(rows), **final, 'curves': curves}


def _final(rows: Sequence[Mapping]) -> dict[str, Any]:
  """The last metrics of each split."""
  last = {row['split']: row for row in rows}
  return {
    f'{split}/{name}': value
    for split, row in last.items()
    for name, value in row.items()
    if isinstance(value, int | float | str)
    if name not in ('step', 'seconds', 'split')
  }


def _totals(rows: Sequence[Mapping]) -> dict[str, Any]:
  """Steps, seconds, and what a run's steps took of everything."""
  last = {row['split']: row for row in rows}
  if 'train' not in last:
    return {}
  found = {name: last['train'][name] for name in ('step', 'seconds')}
  per_step = last.get('cost', {})
  steps = found['step'] - min(row['step'] for row in rows)
  for name, key in (
    ('FLOPs', 'step_flops'),
    ('tokens', 'tokens'),
    ('images', 'images'),
  ):
    if key in per_step:
      found[name] = steps * per_step[key]
  return found


def groups(
  rows: Iterable[Mapping], *keys: str
) -> dict[tuple[Any, ...], list[Mapping]]:
  """Rows by their values of these entries, in the order of the first ones."""
  found: dict[tuple[Any, ...], list[Mapping]] = {}
  for row in rows:
    found.setdefault(tuple(row[key] for key in keys), []).append(row)
  return found


def best(
  rows: Iterable[Mapping], metric: str, *keys: str
) -> tuple[tuple[Any, ...], list[Mapping]]:
  """The group whose mean of a metric is highest, and its rows.

  Where a run diverged, and so has no such metric, its group is the last.
  """

  def mean(item) -> float:
    values = [row.get(metric, -np.inf) for row in item[1]]
    return float(np.mean(np.nan_to_num(values, nan=-np.inf, neginf=-np.inf)))

  return max(groups(rows, *keys).items(), key=mean)


def _settings(root: Path, config: str) -> list[str]:
  """The lines of a gin file and of those it includes, but for comments."""
  lines = []
  for line in (root / config).read_text().splitlines():
    included = re.match(r"include '(.*)'", line)
    if included:
      lines += _settings(root, included[1])
    elif line.strip() and not line.startswith('#'):
      lines.append(line.rstrip())
  return lines


def _resolved(run: Run, root: Path) -> dict[str, Any]:
  """Its bindings, with a folder for each run."""
  return {
    name: model_dir(value, root)
    if isinstance(value, Mapping) and 'config' in value
    else value
    for name, value in run['bindings'].items()
  }


def _thinned(curve: np.ndarray) -> list[list[float | None]]:
  """At most POINTS of a curve, evenly and with both ends, six digits each."""
  keep = np.linspace(0, len(curve) - 1, min(len(curve), POINTS)).round()
  return [
    [None if np.isnan(x) else float(f'{x:.6g}') for x in point]
    for point in curve[keep.astype(int)]
  ]


def _literal(value: Any) -> str:
  if not isinstance(value, str):
    return repr(value)
  # Double quotes, since a shell's own are single ones.
  return value if value[:1] in ('@', '%') else json.dumps(value)
