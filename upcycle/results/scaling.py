# SPDX-License-Identifier: Apache-2.0
"""Laws of the loss of upcycled models and of MoEs from scratch, and their fit.

Upcycled, after Liew et al., "Scaling Laws for Upcycling Mixture-of-Experts
Language Models" (2025), whose budgets are tokens and ours operations:

  L(D, U) = A D^-a U^(-b + c log D) + E

D was spent on the dense model and U on the upcycled one. From scratch, a power
law with an offset (Hoffmann et al., 2022): L(B) = S B^-s + E. Both are the same
model on the same data, so that they share E. D, U and B are in units of the
largest dense budget, which changes A, a and S but not the form. Where dense
budgets are too few for c it is 0.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

from jaxtyping import Float, Int
import numpy as np

Row = Mapping[str, Any]
# Of a curve, what comes before this share of it is left out: the initial drop
# and the optimizer's first steps follow no power law.
FROM = 0.1
DECADES = 3  # of budgets, either way from D, that crossings are looked for in
STARTS = (0.1, 0.5, 0.9)  # E, as shares of the least loss


class Points(NamedTuple):
  """What was measured, in one unit of operations.

  Attributes:
    seed: of the pipeline.
    dense: operations of the dense model; 0 from scratch.
    extra: operations since.
    loss: then.
  """

  seed: Int[np.ndarray, ' N']
  dense: Float[np.ndarray, ' N']
  extra: Float[np.ndarray, ' N']
  loss: Float[np.ndarray, ' N']


class Law(NamedTuple):
  """Parameters of both laws, see above."""

  A: float
  a: float
  b: float
  S: float
  s: float
  E: float
  c: float = 0.0

  def upcycled(self, D: Any, U: Any) -> Any:
    """The loss after U from a dense model of D."""
    D, U = np.log(D), np.log(U)
    return self.A * np.exp((self.c * D - self.b) * U - self.a * D) + self.E

  def scratch(self, B: Any) -> Any:
    """The loss of an MoE from scratch after B."""
    return self.S * B**-self.s + self.E


def points(
  rows: Iterable[Row], metric: str, step_flops: float
) -> tuple[Points, float]:
  """Points of rows of results, and their unit in FLOPs.

  Args:
    rows: of upcycled models and MoEs from scratch. A run's first step says how
      long its dense model was trained; of those of one seed and dense model the
      longest counts, which goes through the others.
    metric: a loss of their curves.
    step_flops: of the dense model.

  Raises:
    ValueError: no row has such a curve, or all are from scratch.
  """
  longest: dict[tuple[int, float], np.ndarray] = {}
  for row in rows:
    curve = np.array(row.get('curves', {}).get(metric, ()), float)
    if len(curve) < 2 or 'error' in row:
      continue
    key = row['seed'], row['step'] - curve[-1, 0]
    if key not in longest or curve[-1, 0] > longest[key][-1, 0]:
      longest[key] = curve
  found = []
  for (seed, steps), curve in longest.items():
    kept = curve[curve[:, 0] >= max(FROM * curve[-1, 0], 1)]
    found += [(seed, steps * step_flops, x[1], x[3]) for x in kept]
  table = np.array(found).reshape(-1, 4)
  table = table[np.isfinite(table).all(1)]
  unit = float(table[:, 1].max(initial=0))
  if not unit:
    raise ValueError(
      f'No run from a dense model has a curve of {metric}, so there is nothing '
      'to fit: run the experiments first.'
    )
  seed, dense, extra, loss = table.T
  return Points(seed.astype(int), dense / unit, extra / unit, loss), unit


def complete(data: Points) -> tuple[Points, list[int]]:
  """The points of seeds that have all dense budgets, and the other seeds.

  A redraw of seeds can then be fitted whenever the whole can.
  """
  budgets = {s: {*data.dense[data.seed == s]} for s in data.seed.tolist()}
  whole = set().union(*budgets.values())
  lacking = sorted(s for s, have in budgets.items() if have != whole)
  kept = ~np.isin(data.seed, lacking)
  return Points(*(x[kept] for x in data)), lacking


def fit(data: Points, start: Law | None = None) -> Law:
  """The laws of least Huber loss (Hoffmann et al., 2022) of the log-loss.

  Args:
    data: of upcycled models and of MoEs from scratch.
    start: where to look from; None: from several places.

  Raises:
    ValueError: too little to fit; it says of what.
  """
  from scipy import optimize

  budgets = _check(data)
  fixed = budgets < 3
  upcycled = data.dense > 0
  D, U = data.dense[upcycled], data.extra[upcycled]

  # A step that goes too far is not finite, and taken back.
  @np.errstate(over='ignore', invalid='ignore')
  def residuals(x: np.ndarray) -> np.ndarray:
    law = _law(x)
    found = np.empty(len(data.loss))
    found[upcycled] = law.upcycled(D, U)
    found[~upcycled] = law.scratch(data.extra[~upcycled])
    return np.log(found / data.loss)

  least, size = data.loss.min(), 6 if fixed else 7
  starts = [start] if start else [_guess(data, e * least) for e in STARTS]
  low = np.array([-np.inf, 0, 0, -np.inf, 0, 0, -np.inf])
  high = np.array([np.inf] * 5 + [least, np.inf])
  found = [
    optimize.least_squares(
      residuals,
      np.clip(_logs(one), low, high)[:size],
      bounds=(low[:size], high[:size]),
      loss='huber',
      f_scale=1e-2,
      x_scale='jac',
      xtol=1e-12,
      ftol=1e-12,
    )
    for one in starts
  ]
  best = min(found, key=lambda result: result.cost)
  return _law(best.x)


def crossing(law: Law, D: float) -> float:
  """The extra budget from which on scratch is better than upcycling from D.

  What the dense model has cost counts as spent.

  Returns:
    In the law's unit; 0 if scratch is never worse, inf if never better, of the
    budgets within DECADES of D.
  """
  from scipy import optimize

  def ahead(log_budget: Any) -> Any:
    budget = np.exp(log_budget)
    return law.upcycled(D, budget) - law.scratch(budget)

  ends = np.log(D) + np.log(10) * np.linspace(-DECADES, DECADES, 200)
  behind = np.flatnonzero(ahead(ends) < 0)
  if not len(behind):
    return 0.0
  last = behind[-1]
  if last == len(ends) - 1:
    return np.inf
  return float(np.exp(optimize.brentq(ahead, ends[last], ends[last + 1])))


def bootstrap(
  data: Points,
  answers: Callable[[Law], Sequence[float]],
  *,
  level: float = 0.95,
  samples: int = 1000,
  seed: int = 0,
) -> tuple[Float[np.ndarray, ' K'], Float[np.ndarray, ' K']]:
  """Intervals of what laws answer, over redraws of the seeds, all refitted.

  The percentile bootstrap, as `metrics.interval`; with few seeds there are few
  different redraws, each of which is fitted once.

  Args:
    data: see `fit`.
    answers: K numbers of a law; they may be inf.
    level: share of redraws inside.
    samples: number of redraws.
    seed: of the redraws.
  """
  whole = fit(data)
  seeds = np.unique(data.seed)

  @functools.cache
  def answer(drawn: tuple[int, ...]) -> np.ndarray:
    chosen = np.concatenate([np.flatnonzero(data.seed == s) for s in drawn])
    return np.array(answers(fit(Points(*(x[chosen] for x in data)), whole)))

  draws = np.random.default_rng(seed).choice(seeds, (samples, len(seeds)))
  found = np.stack([answer(tuple(sorted(draw))) for draw in draws.tolist()])
  ends = [(1 - level) / 2, (1 + level) / 2]
  # Of an infinite budget and a finite one there is no mean.
  low, high = np.quantile(found, ends, axis=0, method='nearest')
  return low, high


def _check(data: Points) -> int:
  """Returns the number of dense budgets."""
  upcycled = data.dense > 0
  budgets = len(np.unique(data.dense[upcycled].round(6)))
  from_scratch = len(np.unique(data.extra[~upcycled].round(6)))
  lengths = len(np.unique(data.extra[upcycled].round(6)))
  faults = [
    f'{have} {what}, at least {need}'
    for have, need, what in (
      (budgets, 2, 'dense budgets'),
      (lengths, 4, 'budgets of upcycled models'),
      (from_scratch, 4, 'budgets of MoEs from scratch'),
    )
    if have < need
  ]
  if faults:
    raise ValueError(
      f'Too little to fit scaling laws to: {"; ".join(faults)} are needed.'
    )
  return budgets


def _guess(data: Points, E: float) -> Law:
  """Straight lines through log(loss - E)."""
  log_loss, log_extra = np.log(data.loss - E), np.log(data.extra)
  upcycled = data.dense > 0
  slope, level = np.polyfit(log_extra[~upcycled], log_loss[~upcycled], 1)
  log_dense = np.log(data.dense[upcycled])
  terms = [np.ones(len(log_dense)), -log_dense, -log_extra[upcycled]]
  found = np.linalg.lstsq(np.stack(terms, 1), log_loss[upcycled])[0]
  return _law([*found, level, -slope, E])


def _law(x: Iterable[float]) -> Law:
  """From logarithms of A and S, and all else as it is."""
  law = Law(*map(float, x))
  return law._replace(A=float(np.exp(law.A)), S=float(np.exp(law.S)))


def _logs(law: Law) -> Law:
  """The inverse of `_law`."""
  return law._replace(A=np.log(law.A), S=np.log(law.S))
