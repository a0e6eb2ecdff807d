# SPDX-License-Identifier: Apache-2.0
"""What the arms of an experiment reached, and what they spent on it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from upcycle.results import sweep, verdicts
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

  They are those right after surgery, and what is reached (see `verdicts`) by
  the most steps, FLOPs and seconds that all runs have spent, as far as these
  are known. Runs of one step are for the evaluation before it. Of runs that
  were not evaluated on their way it is what they have at their end.
  """
  lines = curves(rows)
  if not _on_the_way(lines):
    ends = by_arm(row for row in rows if row['metric'] in row)
    values = {arm: [r[r['metric']] for r in x] for arm, x in ends.items()}
    return {END: values} if values else {}
  found = {START: {arm: [c[0, 3] for c in x] for arm, x in lines.items()}}
  spent = np.array([c[-1, :3] for those in lines.values() for c in those])
  for axis, most in enumerate(spent.min(0)):
    if np.isfinite(most) and spent[:, 0].min() > 1:
      found[f'at equal {AXES[axis]} ({number(most)})'] = {
        arm: [verdicts.reached(c, axis, most) for c in those]
        for arm, those in lines.items()
      }
  return found


def _on_the_way(lines: Mapping[str, Sequence[np.ndarray]]) -> bool:
  """Whether there are curves, and more of each than its ends."""
  each = [curve for those in lines.values() for curve in those]
  return bool(each) and all(len(c) > 2 or c[-1, 0] <= 1 for c in each)


def levelled(rows: Sequence[Row]) -> Sequence[Row]:
  """Rows whose curves are moved to where their seed would be an average one.

  A seed's dense model decides where all its arms are, and that hides by how
  much they differ. What is left of a seed's deviation from the mean of its arm
  is made larger by sqrt(C / (C - 1)), C arms, since the level that was taken
  off has a share of it (Cousineau, 2005; Morey, 2008). Rows stay as they are
  where arms are not of the same seeds, or of one.
  """
  lines = curves(rows)
  having = [row for row in rows if row['metric'] in row.get('curves', {})]
  seeds = {arm: [r['seed'] for r in x] for arm, x in by_arm(having).items()}
  common = {tuple(those) for those in seeds.values()}
  if not _on_the_way(lines) or len(common) != 1 or len(*common) < 2:
    return rows
  most = min(c[-1, 0] for those in lines.values() for c in those)
  levels = np.array(
    [
      [c[0, 3] if most <= 1 else verdicts.reached(c, 0, most) for c in those]
      for those in lines.values()
    ]
  ).mean(0)
  wider = (len(lines) / max(len(lines) - 1, 1)) ** 0.5
  moved = []
  for those, of in zip(lines.values(), by_arm(having).values(), strict=True):
    if len({len(curve) for curve in those}) > 1:
      return rows
    values = np.stack([curve[:, 3] for curve in those])
    values += (levels.mean() - levels)[:, None]
    values = values.mean(0) + wider * (values - values.mean(0))
    for row, curve, y in zip(of, those, values, strict=True):
      curve = np.column_stack([curve[:, :3], y])
      moved.append({**row, 'curves': {row['metric']: curve}})
  return moved


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
