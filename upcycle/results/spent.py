# SPDX-License-Identifier: Apache-2.0
"""What a run reached, and what it had spent by then.

All is counted from a run's first evaluation on: what came before it, such as
the dense training that upcycling starts from, is the same for all.
"""

from collections.abc import Mapping, Sequence
import math
import os
import re
from typing import Any, NamedTuple

import numpy as np

from upcycle.results.metrics import Row, read

# Which way is better, by the first rule that fits a metric; 0 is no quality: a
# regulariser, a choice, or the clock.
BETTER = (
  (r'.*(z_loss|_l2|seconds|_per_second|majority|naive_bayes)', 0),
  (r'.*(loss|perplexity|error)', -1),
  (r'.*', 1),
)
AXES = 'steps', 'FLOPs', 'seconds'
RATE = '_per_second'


class Run(NamedTuple):
  """What the metrics of one run say.

  Attributes:
    curves: by metric ('eval/loss') an array [N, 4] of its evaluations: steps,
      FLOPs and seconds spent since the first, and the value. FLOPs are NaN
      where the run has no line of split 'cost'.
    cost: that line, and 'step_seconds'.
    rates: tokens or images a second, by split: of training the median, of
      evaluations the best, since the first one compiles.
    unit: 'token' or 'image'.
  """

  curves: dict[str, np.ndarray]
  cost: dict[str, Any]
  rates: dict[str, float]
  unit: str


def of_rows(rows: Sequence[Row]) -> Run:
  """Of the rows of a metrics.jsonl.

  Raises:
    ValueError: nothing was evaluated.
  """
  splits: dict[str, list[Row]] = {}
  for row in rows:
    splits.setdefault(row['split'], []).append(row)
  rates, unit = _rates(splits)
  cost = dict([{}, *splits.pop('cost', [])][-1])
  splits.pop('train', None)
  evaluations = [row for rows in splits.values() for row in rows]
  if not evaluations:
    raise ValueError('nothing was evaluated')
  first = min(evaluations, key=lambda row: row['step'])
  start = np.array([first['step'], 0, first['seconds'], 0])
  per_step = np.array([0, cost.get('step_flops', np.nan), 0, 0])

  def point(row: Row, value: float) -> np.ndarray:
    here = np.array([row['step'], 0, row['seconds'], value]) - start
    return here + here[0] * per_step

  last = point(max(evaluations, key=lambda row: row['step']), 0)
  cost['step_seconds'] = last[2] / last[0] if last[0] else math.nan
  curves = {
    f'{split}/{name}': np.stack([point(r, r[name]) for r in those if name in r])
    for split, those in splits.items()
    for name in _qualities(those)
  }
  return Run(curves, cost, rates, unit)


def of_folders(
  folders: Mapping[str, Sequence[str | os.PathLike]],
) -> dict[str, list[Run]]:
  """The runs of MODEL_DIRs, by the same names.

  Raises:
    ValueError: names all folders that hold no run, or none with evaluations.
  """
  found: dict[str, list[Run]] = {}
  faults = []
  for name, those in folders.items():
    for folder in those:
      try:
        found.setdefault(name, []).append(of_rows(read(folder)))
      except (OSError, ValueError) as error:
        faults.append(f'{folder}: {error}')
  if faults:
    raise ValueError('Runs that cannot be compared:\n  ' + '\n  '.join(faults))
  return found


def sign(metric: str) -> int:
  """1 where more is better, -1 where less is, 0 for what is no quality."""
  return next(s for rule, s in BETTER if re.fullmatch(rule, metric))


def needed(curve: np.ndarray, axis: int, value: float, better: int) -> float:
  """What was spent when a curve first reached a value, between its points.

  Args:
    curve: of a `Run`, [N, 4].
    axis: of AXES.
    value: to reach.
    better: see `sign`.

  Returns:
    inf if it never did, NaN if what it spent is not known.
  """
  x, y = curve[:, axis], curve[:, 3]
  reached = better * (y - value) >= 0
  if not reached.any():
    return math.inf
  i = int(reached.argmax())
  if i == 0:
    return float(x[0])
  share = (value - y[i - 1]) / (y[i] - y[i - 1])
  return float(x[i - 1] + share * (x[i] - x[i - 1]))


def _qualities(rows: Sequence[Row]) -> list[str]:
  """Names of what says how good a model is, in their order."""
  numbers = {
    name: None
    for row in rows
    for name, value in row.items()
    if isinstance(value, int | float) and name not in ('step', 'seconds')
  }
  return [name for name in numbers if sign(name)]


def _rates(splits: Mapping[str, Sequence[Row]]) -> tuple[dict[str, float], str]:
  found, unit = {}, 'token'
  for split, rows in splits.items():
    names = [n for row in rows for n in row if n.endswith(RATE)][:1]
    for name in names:
      take = np.median if split == 'train' else np.max
      found[split] = float(take([row[name] for row in rows if name in row]))
      unit = name.removesuffix(f's{RATE}')
  return found, unit
