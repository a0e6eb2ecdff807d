# SPDX-License-Identifier: Apache-2.0
"""Figures of the report: curves, or dots where there are many arms."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from upcycle.results import figures, report_values, svg
from upcycle.results.metrics import interval
from upcycle.results.spent import AXES

Row = Mapping[str, Any]
LABELS = {
  'eval/loss': 'validation loss',
  'eval/accuracy': 'validation accuracy',
  'test/accuracy': 'test accuracy',
  'test/mean': 'mean test score',
  'fewshot/10shot/mnist': '10-shot accuracy, MNIST',
}
MOST_CURVES = 6
FLOPS = ('P', 1e15), ('T', 1e12), ('G', 1e9), ('', 1)


def figure(rows: Sequence[Row], kind: str = '') -> dict[str, str]:
  """The figure of one modality, {'svg', 'caption'}; '' where nothing is.

  Args:
    rows: of results.
    kind: of KINDS; '': curves where there are few arms and they have some.
  """
  if not report_values.reached(rows):
    return {'svg': '', 'caption': ''}
  lines = report_values.curves(rows)
  few = len(lines) <= MOST_CURVES and all(
    len(c) > 2 for those in lines.values() for c in those
  )
  kind = kind or ('curves' if few else 'final')
  draw, caption = KINDS[kind if lines else 'final']
  metric = rows[0]['metric']
  drawn = report_values.levelled(rows)
  return {
    'svg': draw(drawn, LABELS.get(metric, metric)),
    'caption': caption + (LEVELLED if drawn is not rows else ''),
  }


def curves(rows: Sequence[Row], label: str) -> str:
  """The metric against all that is spent on it, a line an arm."""
  lines = {n: _stacked(c) for n, c in report_values.curves(rows).items()}
  known = [
    axis
    for axis in range(len(AXES))
    if all(np.isfinite(c[..., axis]).all() for c in lines.values())
  ]
  before = {row['before/FLOPs'] for row in rows if 'before/FLOPs' in row}

  def draw(panels):
    values = [c[..., 3] for c in lines.values()]
    low, high = figures.limits(values, None)
    for panel, axis in zip(panels, known, strict=True):
      most = max(c[:, -1, axis].mean() for c in lines.values())
      unit, scale = _unit(axis, most, before)
      for i, (name, c) in enumerate(lines.items()):
        style = {
          'color': figures.COLOURS[i % 6],
          'marker': figures.MARKERS[i % 6],
        }
        x = c[..., axis].mean(0) / scale
        figures.draw(
          panel, x, c[..., 3], low, high, label=name, marks=6, **style
        )
      panel.set(xlabel=f'extra {unit}', ylim=(low, high))
    panels[0].set(ylabel=label)
    handles = panels[0].get_legend_handles_labels()
    panels[0].figure.legend(*handles, loc='outside upper left', ncols=4)

  return svg.drawn(len(known), 3.5, draw)


def final(rows: Sequence[Row], label: str) -> str:
  """A dot and its interval an arm, beside those of single seeds."""
  found = report_values.reached(rows)
  found.pop(report_values.START, None)
  return _dots(found, label)


def start(rows: Sequence[Row], label: str) -> str:
  """The same, right after surgery."""
  title = report_values.START
  return _dots({title: report_values.reached(rows)[title]}, label)


KINDS = {
  'curves': (
    curves,
    'Mean over seeds and its 95% bootstrap interval, against what is spent '
    'after the dense checkpoint.',
  ),
  'final': (
    final,
    'Mean over seeds and its 95% bootstrap interval; small dots are seeds.',
  ),
  'start': (
    start,
    'Right after surgery: mean over seeds and its 95% bootstrap interval; '
    'small dots are seeds.',
  ),
}
LEVELLED = (
  ' Seeds are moved to a common level, the mean of their arms, for it is how '
  'arms of one seed differ that counts.'
)


def _dots(
  found: Mapping[str, Mapping[str, Sequence[float]]], label: str
) -> str:
  names = list(dict.fromkeys(n for by in found.values() for n in by))

  def draw(panels):
    for panel, (title, by) in zip(panels, found.items(), strict=True):
      for name, values in by.items():
        y, colour = names.index(name), figures.COLOURS[0]
        panel.plot(
          values, [y + 0.22] * len(values), 'o', ms=3, c=svg.INK, alpha=0.5
        )
        panel.plot(interval(values), (y, y), c=colour, lw=3, alpha=0.5)
        panel.plot(np.mean(values), y, 'o', ms=7, c=colour)
      panel.set(title=title, xlabel=label, yticks=range(len(names)))
      panel.set_yticklabels(names)
      panel.locator_params(axis='x', nbins=4)
    panels[0].set_ylim(len(names) - 0.5, -0.5)

  return svg.drawn(len(found), 1.3 + 0.32 * len(names), draw)


def _stacked(seeds: Sequence[np.ndarray]) -> np.ndarray:
  """Curves [R, N, 4] at the steps of the first one."""
  steps = seeds[0][:, 0]
  columns = range(seeds[0].shape[1])
  return np.stack(
    [
      np.stack([np.interp(steps, c[:, 0], c[:, i]) for i in columns], -1)
      for c in seeds
    ]
  )


def _unit(axis: int, most: float, before: set[float]) -> tuple[str, float]:
  """What to count an axis in, and how much of AXES' own it has.

  Operations are shares of those before, as in the paper, where these are known
  and the same for all.
  """
  if AXES[axis] == 'seconds':
    return figures.time_unit(most)
  if AXES[axis] == 'FLOPs' and len(before) == 1:
    return "FLOPs, % of the dense model's", max(before) / 100
  if AXES[axis] == 'FLOPs':
    letter, scale = next((x, n) for x, n in FLOPS if most >= n or n == 1)
    return f'{letter}FLOPs', scale
  return AXES[axis], 1
