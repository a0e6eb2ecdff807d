# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: quality per step, operation and second, and their cost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import math
from typing import Any

import numpy as np

from upcycle.results.metrics import interval
from upcycle.results.spent import AXES, Run, needed, sign
from upcycle.results.tables import NEVER, UNKNOWN, Table, number

Arms = Mapping[str, Sequence[Run]]
Values = dict[str, list[float]]

# What a run spends, by subject and name; a KeyError is an unknown number.
COSTS: tuple[tuple[str, str, Callable[[Run], float]], ...] = (
  ('training', 'FLOPs a step', lambda r: r.cost['step_flops']),
  ('training', 'seconds a step', lambda r: r.cost['step_seconds']),
  ('training', '{unit}s a second', lambda r: r.rates['train']),
  ('training', 'peak memory in bytes', lambda r: r.cost['peak_memory']),
  ('parameters', 'in all', lambda r: r.cost['parameters']),
  ('parameters', 'active', lambda r: r.cost['active_parameters']),
  (
    'inference',
    'FLOPs per {unit}',
    lambda r: r.cost['forward_flops'] / r.cost[f'{r.unit}s'],
  ),
)
MACHINE = 'device', 'devices', 'cpu', 'cores', 'jax'


def rows(arms: Arms, only: str = '') -> Table:
  """The table of a comparison.

  Args:
    arms: runs by name, several of one name being its seeds; the first is what
      the others are compared with.
    only: one metric, see `metrics`; '': all.

  Returns:
    Rows with 'of' and 'what', by arm a number, {'mean', 'low', 'high'} of
    several seeds (95% interval of the mean), 'never' or 'unknown', and the
    ratio to the first arm as '<arm> / <first>', None where there is none.

  Raises:
    ValueError: the runs have no such metric in common.
  """
  found = [
    (metric, *row)
    for metric in metrics(arms, only)
    for row in _quality(arms, metric)
  ]
  return [_row(*row) for row in [*found, *_costs(arms)]]


def metrics(arms: Arms, only: str = '') -> list[str]:
  """The metrics that all runs have, losses first.

  Args:
    arms: runs by name.
    only: 'eval/loss', or its end, 'loss'; '': all.

  Raises:
    ValueError: there is none, or none of this name.
  """
  runs = [run for arm in arms.values() for run in arm]
  common = [m for m in runs[0].curves if all(m in r.curves for r in runs)]
  common.sort(key=sign)
  found = [m for m in common if not only or f'/{m}'.endswith(f'/{only}')]
  if not found:
    raise ValueError(
      f'There is no metric {only or "at all"} that all runs have; they share '
      f'{", ".join(common) or "none"}.'
    )
  return found


def at_equal(
  curves: Mapping[str, Sequence[np.ndarray]], axis: int
) -> tuple[float, Values]:
  """The most that all runs have spent, and their values there.

  Args:
    curves: by name, as in a `Run`.
    axis: of AXES.
  """
  most = float(np.min([c[-1, axis] for arm in curves.values() for c in arm]))
  return most, {
    name: [float(np.interp(most, c[:, axis], c[:, 3])) for c in arm]
    for name, arm in curves.items()
  }


def notes(arms: Arms) -> list[str]:
  """What to know before one believes the numbers."""
  bare = [
    n for n, arm in arms.items() for r in arm if 'step_flops' not in r.cost
  ]
  machines = {
    ', '.join(f'{key} {r.cost[key]}' for key in MACHINE if key in r.cost): name
    for name, arm in arms.items()
    for r in arm
    if 'step_flops' in r.cost
  }
  found = []
  if bare:
    found.append(
      f'Without a line of cost in metrics.jsonl: {", ".join(sorted({*bare}))}. '
      'FLOPs, parameters and memory of such runs are unknown.'
    )
  if len(machines) > 1:
    found.append(
      'Seconds are of different machines: '
      + '; '.join(f'{name} on {where}' for where, name in machines.items())
      + '.'
    )
  runs = [r for arm in arms.values() for r in arm]
  if len({r.cost['memory_of'] for r in runs if 'memory_of' in r.cost}) > 1:
    found.append(
      'Peak memory is of the fullest device in some runs, and of the whole '
      'process in others, whose devices do not count it.'
    )
  return found


def _quality(arms: Arms, metric: str) -> Iterator[tuple[str, Values]]:
  """What is asked of a metric, and each run's answer."""
  curves = {name: [r.curves[metric] for r in arm] for name, arm in arms.items()}

  def each(answer: Callable[[np.ndarray], float]) -> Values:
    return {name: [answer(c) for c in arm] for name, arm in curves.items()}

  yield 'at the start', each(lambda c: c[0, 3])
  yield 'at the end', each(lambda c: c[-1, 3])
  for axis, unit in enumerate(AXES):
    most, value = at_equal(curves, axis)
    yield f'at equal {unit} ({number(most)})', value
  for name, arm in curves.items():
    end = float(np.mean([c[-1, 3] for c in arm]))
    for axis, unit in enumerate(AXES):
      spent = each(lambda c, a=axis, y=end: needed(c, a, y, sign(metric)))
      yield f'{unit} to {number(end)}, the end of {name}', spent


def _costs(arms: Arms) -> Iterator[tuple[str, str, Values]]:
  """What training and inference take, whether it is known or not."""
  runs = [run for arm in arms.values() for run in arm]
  measured = dict.fromkeys(s for r in runs for s in r.rates if s != 'train')
  speeds = [
    ('inference', f'seconds per {{unit}} ({s})', lambda r, s=s: 1 / r.rates[s])
    for s in measured
  ]
  for of, what, answer in (*COSTS, *speeds):
    values = {n: [_known(answer, r) for r in arm] for n, arm in arms.items()}
    yield of, what.format(unit=runs[0].unit), values


def _known(answer: Callable[[Run], float], run: Run) -> float:
  try:
    return float(answer(run))
  except KeyError:
    return math.nan


def _row(of: str, what: str, values: Values) -> dict[str, Any]:
  first, *others = values
  means = {name: float(np.mean(v)) for name, v in values.items()}
  row = {'of': of, 'what': what} | {n: _cell(v) for n, v in values.items()}
  for name in others:
    known = np.isfinite([means[name], means[first]]).all() and means[first]
    row[f'{name} / {first}'] = means[name] / means[first] if known else None
  return row


def _cell(values: Sequence[float]) -> float | str | dict[str, float]:
  """Of the seeds of an arm."""
  never = sum(map(math.isinf, values))
  if any(map(math.isnan, values)):
    return UNKNOWN
  if never:
    return (
      NEVER if never == len(values) else f'{never} of {len(values)} {NEVER}'
    )
  if len(values) == 1:
    return float(values[0])
  low, high = map(float, interval(values))
  return {'mean': float(np.mean(values)), 'low': low, 'high': high}
