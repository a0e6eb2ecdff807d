# SPDX-License-Identifier: Apache-2.0
"""What the arms of an experiment reached, and what they spent on it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from upcycle.results import compare, sweep
from upcycle.results.metrics import interval
from upcycle.results.spent import AXES
from upcycle.results.tables import Table, number

Row = Mapping[str, Any]
START, END = 'at the start', 'at the end'
SPENT = (
  ('FLOPs', 'FLOPs', 1.0),
  ('seconds', 'seconds', 1.0),
  ('peak memory (MB)', 'cost/peak_memory', 1e-6),
)


def by_arm(rows: Iterable[Row]) -> dict[str, list[Row]]:
  """The seeds of each arm, in the order of the first ones."""
  return {arm: those for (arm,), those in sweep.groups(rows, 'arm').items()}


def curves(rows: Iterable[Row]) -> dict[str, list[np.ndarray]]:
  """By arm the curves [N, 4] of its rows' metric, see `spent.Run`."""
  having = [row for row in rows if row.get('metric') in row.get('curves', {})]
  return {
    arm: [np.array(row['curves'][row['metric']], float) for row in those]
    for arm, those in by_arm(having).items()
  }


def reached(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
  """By title and arm the seeds' values of their metric.

  They are those right after surgery, at the end, and at the most FLOPs and
  seconds that all runs have spent, as far as these are known.
  """
  lines = curves(rows)
  ends = by_arm(row for row in rows if row['metric'] in row)
  found = {
    START: {arm: [c[0, 3] for c in those] for arm, those in lines.items()},
    END: {arm: [r[r['metric']] for r in those] for arm, those in ends.items()},
  }
  for axis, unit in enumerate(AXES):
    most, values = compare.at_equal(lines, axis) if lines else (np.nan, {})
    if unit != 'steps' and np.isfinite(most):
      found[f'at equal {unit} ({number(most)})'] = values
  return {title: values for title, values in found.items() if values}


def table(rows: Sequence[Row]) -> Table:
  """A row an arm: seeds, its metric, what it spent. Empty columns are left out.

  Args:
    rows: of results, of one modality.
  """
  arms = by_arm(rows)
  columns = {
    'seeds': {arm: len(those) for arm, those in arms.items()},
    **{title: _each(spread, those) for title, those in reached(rows).items()},
    **{title: _mean(rows, key, unit) for title, key, unit in SPENT},
  }
  return [
    {'arm': arm} | {title: by.get(arm) for title, by in columns.items() if by}
    for arm in arms
  ]


def spread(values: Sequence[float]) -> float | dict[str, float]:
  """The mean of seeds with its 95% bootstrap interval; of one, its value."""
  if len(values) == 1:
    return float(values[0])
  low, high = map(float, interval(values))
  return {'mean': float(np.mean(values)), 'low': low, 'high': high}


def _each(function: Callable, by: Mapping[str, Any]) -> dict[str, Any]:
  return {name: function(value) for name, value in by.items()}


def _mean(rows: Sequence[Row], key: str, unit: float) -> dict[str, float]:
  having = by_arm(row for row in rows if key in row)
  return _each(lambda those: unit * np.mean([r[key] for r in those]), having)
