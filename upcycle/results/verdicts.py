# SPDX-License-Identifier: Apache-2.0
"""Whether a claim holds: a statistic that is stated before anything is run.

A claim is a list of checks, each of which compares two arms on the runs that
have the same seed. Their differences, positive where the first arm is better,
have a mean and a 95% interval by Student's t: that of a bootstrap would reach
from the least to the greatest of three seeds, which holds the true mean only
three times in four. Evaluations of one run scatter, for its weights do, and
more than two runs differ: what an arm has reached is the mean of its curve over
the last third of what was spent. 'above' holds where the interval is above 0
and fails where it is below; 'equal' holds where it is within the margin that
counts as equal and fails where it is beyond. All else is undecided, and so is
everything with fewer than three seeds. A run that diverged is worse than any
that did not, but for what was measured before; two that did are not compared.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from upcycle.results import spent

HOLDS, FAILS, UNDECIDED = 'holds', 'does not hold at this scale', 'undecided'
NO_CLAIM = 'no claim'
SEEDS = 3  # fewer decide nothing
TAIL = 1 / 3  # of what was spent, over which a curve is averaged
# For those who read what is found.
RULE = (
  "A claim holds where the 95% intervals (Student's t) of its differences over "
  'seeds are on its side, does not hold at this scale where one is on the '
  'other, and is undecided otherwise, as with fewer than three seeds. '
  'Differences are of runs with the same seed, positive where the arm named '
  'first is better, and of what their curves have reached: means over the last '
  'third of the steps, operations or seconds that are compared, unless it is '
  'said to be at the start or at the end. To be within a margin, fixed before '
  'the runs, the whole interval has to be. What never gets to where it is to '
  'get counts as getting there after twice what it spent. A run that diverged '
  'is worse than any that did not.'
)
Row = Mapping[str, Any]


class Check(NamedTuple):
  """A comparison of two arms.

  Attributes:
    first: the arm that the claim says is better, or as good.
    second: the other.
    at: 'steps', 'FLOPs' or 'seconds': of the most that both have spent;
      'start': right after surgery; 'end': whatever was spent, of rows that need
      no curves.
    relation: 'above' or 'equal'; 'no gain': it is not above by more than the
      margin, however far below; 'widens': it is further above than after half
      of that; 'cheaper': it needs less of `at` to get to what the second one
      has reached, as the logarithm of a ratio, where a run that never gets
      there counts as one that does after twice of what it spent.
    margin: of 'equal' and 'no gain', in the metric's units.
    share: of what both have spent, to compare after.
    beyond: two arms whose own difference is taken off.
    metric: '' is that of the rows, their 'metric'.
    decides: False for what is shown beside a claim and no part of it.
  """

  first: str
  second: str
  at: str = 'steps'
  relation: str = 'above'
  margin: float = 0.0
  share: float = 1.0
  beyond: tuple[str, str] = ()
  metric: str = ''
  decides: bool = True


class Finding(NamedTuple):
  """What a check found: the mean difference, its interval, the verdict."""

  check: Check
  mean: float
  low: float
  high: float
  seeds: int
  verdict: str


def find(check: Check, rows: Iterable[Row]) -> Finding:
  """Evaluates a check on the rows of one modality."""
  arms = check.first, check.second, *check.beyond
  seeds: dict[int, dict[str, Row]] = {}
  for row in rows:
    if row['arm'] in arms:
      seeds.setdefault(row['seed'], {})[row['arm']] = row
  complete = [by for by in seeds.values() if len(by) == len({*arms})]
  # Not every scale measures everything.
  complete = [by for by in complete if _have(check, by.values())]
  found = np.array([_of_seed(check, *map(by.get, arms)) for by in complete])
  found = found[~np.isnan(found)]
  if not len(found):
    return Finding(check, np.nan, np.nan, np.nan, 0, UNDECIDED)
  low, high = t_interval(found)
  verdict = _verdict(check, low, high) if len(found) >= SEEDS else UNDECIDED
  return Finding(check, float(found.mean()), low, high, len(found), verdict)


def _curve(row: Row, metric: str) -> np.ndarray:
  """[N, 4], see `spent.Run`; N = 0 if it was not measured."""
  return np.array(row.get('curves', {}).get(metric, ()), float).reshape(-1, 4)


def _have(check: Check, rows: Iterable[Row]) -> bool:
  return all(
    'error' in r
    or (check.metric or r['metric'])
    in (r if check.at == 'end' else r['curves'])
    for r in rows
  )


def difference(check: Check, first: Row, second: Row) -> float:
  """How much better one run is than another, in the metric's units."""
  metric = check.metric or first['metric']
  better = spent.sign(metric)
  curves = [_curve(row, metric) for row in (first, second)]
  at_start = check.at == 'start' and all(map(len, curves))
  lost = [
    bool(np.isnan(curve[0, 3])) if at_start else 'error' in row
    for curve, row in zip(curves, (first, second), strict=True)
  ]
  if any(lost):
    return np.nan if all(lost) else (-np.inf if lost[0] else np.inf)
  if at_start:
    a, b = (curve[0, 3] for curve in curves)
    return float(better * (a - b))
  if check.at == 'end':
    return float(better * (first[metric] - second[metric]))
  axis = spent.AXES.index(check.at)
  if check.relation == 'cheaper':
    value = reached(curves[1], axis, curves[1][-1, axis])
    a, b = (_needed(c, axis, value, better) for c in curves)
    return float(np.log(b / a))
  most = check.share * min(curve[-1, axis] for curve in curves)

  def ahead(spent_by_both: float) -> float:
    a, b = (reached(curve, axis, spent_by_both) for curve in curves)
    return better * (a - b)

  return ahead(most) - (ahead(most / 2) if check.relation == 'widens' else 0)


def reached(curve: np.ndarray, axis: int, most: float) -> float:
  """The mean of a curve over the last third of what was spent.

  Args:
    curve: [N, 4], see `spent.Run`.
    axis: of `spent.AXES`.
    most: what was spent.
  """
  spent_by_then = np.linspace((1 - TAIL) * most, most, 49)
  return float(np.interp(spent_by_then, curve[:, axis], curve[:, 3]).mean())


def t_interval(
  values: Iterable[float], level: float = 0.95
) -> tuple[float, float]:
  """Confidence interval of a mean by Student's t.

  Args:
    values: one a seed.
    level: how often it holds the true mean, were values normal.

  Returns:
    (low, high): infinite of one value, the least and greatest of infinite ones.
  """
  from scipy import special  # as late as it is needed

  values = np.array([*values], np.float64)
  if not np.isfinite(values).all():
    return float(values.min()), float(values.max())
  if len(values) < 2:
    return -np.inf, np.inf
  t = special.stdtrit(len(values) - 1, (1 + level) / 2)
  half = t * values.std(ddof=1) / len(values) ** 0.5
  return float(values.mean() - half), float(values.mean() + half)


def _of_seed(check: Check, first: Row, second: Row, *beyond: Row) -> float:
  taken_off = difference(check, *beyond) if beyond else 0.0
  return difference(check, first, second) - taken_off


def _needed(curve: np.ndarray, axis: int, value: float, better: int) -> float:
  needed = spent.needed(curve, axis, value, better)
  # What it had from the start it needed nothing for: the ratio wants a number.
  least = curve[1, axis] / 2
  return max(needed, least) if np.isfinite(needed) else 2 * curve[-1, axis]


def overall(findings: Sequence[Finding]) -> str:
  """Of a claim: all of its checks hold, one fails, or it is undecided."""
  verdicts = {f.verdict for f in findings if f.check.decides}
  if not verdicts:
    return NO_CLAIM
  if FAILS in verdicts:
    return FAILS
  return HOLDS if verdicts == {HOLDS} else UNDECIDED


def by_modality(
  checks: Sequence[Check] | Mapping[str, Sequence[Check]], rows: Sequence[Row]
) -> dict[str, list[Finding]]:
  """Findings for language and vision, which may have checks of their own."""
  found = {}
  for modality in dict.fromkeys(row['modality'] for row in rows):
    own = checks[modality] if isinstance(checks, Mapping) else checks
    those = [row for row in rows if row['modality'] == modality]
    found[modality] = [find(check, those) for check in own]
  return found


def words(finding: Finding) -> str:
  """A finding in a line."""
  return f'{claim(finding.check)}: {numbers(finding)}, {finding.verdict}'


def numbers(finding: Finding) -> str:
  """Its mean and interval, of what is cheaper as a factor."""
  if not finding.seeds:
    return 'no seed has both'
  found, form = np.array(finding[1:4]), '+.4f'
  if finding.check.relation == 'cheaper':
    found, form = np.exp(found), '.2f'
  mean, low, high = (f'{x:{form}}' for x in found)
  if finding.check.relation == 'cheaper':
    mean = f'{finding.check.second} needs {mean} times as much'
  if finding.seeds == 1:
    return f'{mean} (1 seed)'
  return f'{mean} ({low} to {high}, {finding.seeds} seeds)'


def claim(check: Check) -> str:
  """What a check says."""
  verb = {
    'above': 'is better than',
    'equal': f'is within {check.margin:g} of',
    'no gain': f'is not better by {check.margin:g} than',
    'widens': 'draws away from',
    'cheaper': 'gets more cheaply to the level of',
  }[check.relation]
  ends = {'start': 'at the start', 'end': 'at the end'}
  where = ends.get(check.at, f'for equal {check.at}')
  if check.relation == 'cheaper':
    where = f'in {check.at}'
  if check.share != 1:
    where = f'after {check.share:.0%}, {where}'
  if check.beyond:
    verb = f'is as far ahead, within {check.margin:g}, of'
    where = f'as {check.beyond[0]} is of {check.beyond[1]}, {where}'
  metric = f' ({check.metric})' if check.metric else ''
  return f'{check.first} {verb} {check.second} {where}{metric}'


def summary(checks: Any) -> Callable[[Sequence[Row]], str]:
  """What a sweep prints: each check, and the verdict, by modality."""

  def text(rows: Sequence[Row]) -> str:
    return '\n'.join(
      line
      for modality, findings in by_modality(checks, rows).items()
      for line in (
        f'{modality}: {overall(findings)}',
        *(f'  {words(finding)}' for finding in findings),
      )
    )

  return text


def _verdict(check: Check, low: float, high: float) -> str:
  if check.relation == 'equal':
    if -check.margin <= low and high <= check.margin:
      return HOLDS
    return FAILS if low > check.margin or high < -check.margin else UNDECIDED
  if check.relation == 'no gain':
    if high <= check.margin:
      return HOLDS
    return FAILS if low > check.margin else UNDECIDED
  if low > 0:
    return HOLDS
  return FAILS if high < 0 else UNDECIDED
