# SPDX-License-Identifier: Apache-2.0
"""Sweeps: lists of runs, their commands, and what came of them.

A run is {'name', 'config', 'bindings'}: the gin file and what is set beside it.
Further entries, such as its arm and seed, come back in its row of results.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np

from upcycle.results.metrics import read

Run = Mapping[str, Any]
KEYS = 'name', 'config', 'bindings'


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


def command(run: Run, model_dir: str | Path) -> list[str]:
  """What trains a run, after the name of the Python to do it with.

  Values are written as Python literals, gin references (@, %) as they are.
  """
  bindings = {**run['bindings'], 'MODEL_DIR': str(model_dir)}
  return [
    'scripts/train.py',
    f'--gin_file={run["config"]}',
    *(f'--gin.{name}={_literal(x)}' for name, x in bindings.items()),
  ]


def find(run: Run, rows: Iterable[Mapping]) -> Mapping | None:
  """The row of results that has all entries of a run, if there is one."""
  entries = json.loads(json.dumps(run)).items()
  same = (row for row in rows if all(row.get(k) == v for k, v in entries))
  return next(same, None)


def result(run: Run, model_dir: str | Path) -> dict[str, Any]:
  """A run's row: its entries, last step, seconds, last metrics by split.

  Metrics are named 'eval/loss'; those of single layers are left out.
  """
  last = {row['split']: row for row in read(model_dir)}
  final = {
    f'{split}/{name}': value
    for split, row in last.items()
    for name, value in row.items()
    if isinstance(value, int | float) and name not in ('step', 'seconds')
    if '/' not in name or split not in ('train', 'eval')
  }
  ends = last['train']['step'], last['train']['seconds']
  return {**run, **dict(zip(('step', 'seconds'), ends, strict=True)), **final}


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


def _literal(value: Any) -> str:
  if not isinstance(value, str):
    return repr(value)
  # Double quotes, since a shell's own are single ones.
  return value if value[:1] in ('@', '%') else json.dumps(value)
