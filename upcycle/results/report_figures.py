# SPDX-License-Identifier: Apache-2.0
"""Figures of the report: SVG in the colours of the page that it is in."""

from collections.abc import Mapping, Sequence
import io
import re
from typing import Any

import numpy as np

from upcycle.results import figures, report_values
from upcycle.results.metrics import interval
from upcycle.results.spent import AXES

Row = Mapping[str, Any]
INK = '#123456'  # becomes that of the text around it
THEME = {
  **figures.STYLE,
  **dict.fromkeys(
    (
      'text.color',
      'axes.labelcolor',
      'axes.edgecolor',
      'xtick.color',
      'ytick.color',
    ),
    INK,
  ),
  'figure.facecolor': 'none',
  'axes.facecolor': 'none',
  'grid.color': '#808080',
  'grid.alpha': 0.25,
  'legend.fontsize': 10,
  # Text remains text; its font is the page's.
  'svg.fonttype': 'none',
}
# Of a figure that stands alone.
INKS = (
  '<style>svg{color:#333;font-family:sans-serif}'
  '@media(prefers-color-scheme:dark){svg{color:#ccc}}</style>'
)
LABELS = {
  'eval/loss': 'validation loss',
  'eval/accuracy': 'validation accuracy',
  'test/accuracy': 'test accuracy',
  'test/mean': 'mean test score',
}
MOST_CURVES = 5
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
  return {'svg': draw(rows, LABELS.get(metric, metric)), 'caption': caption}


def clean(svg: str) -> str:
  """An SVG to be put into a page: without what names other resources."""
  svg = re.sub(r'^.*?(?=<svg\b)', '', svg, flags=re.DOTALL)
  svg = re.sub(r'\s*<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  # Matplotlib turns every text, mostly by nothing.
  svg = re.sub(r' transform="rotate\(-0 [^"]*"', '', svg)
  return svg.replace(INK, 'currentColor').strip()


def prefixed(svg: str, prefix: str) -> str:
  """The same with other ids, for a page that has several figures."""
  return re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{prefix}-', svg)


def alone(svg: str) -> str:
  """The same as a file of its own."""
  return re.sub(r'(<svg\b[^>]*>)', rf'\1{INKS}', svg, count=1) + '\n'


def curves(rows: Sequence[Row], label: str) -> str:
  """The metric against all that is spent on it, a line an arm."""
  lines = {n: _stacked(c) for n, c in report_values.curves(rows).items()}
  known = [
    axis
    for axis in range(len(AXES))
    if all(np.isfinite(c[..., axis]).all() for c in lines.values())
  ]

  def draw(panels):
    values = [c[..., 3] for c in lines.values()]
    low, high = figures.limits(values, None)
    for panel, axis in zip(panels, known, strict=True):
      most = max(c[:, -1, axis].mean() for c in lines.values())
      unit, scale = _unit(axis, most)
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
    panels[0].figure.legend(
      *handles, loc='outside upper left', ncols=len(lines)
    )

  return _svg(len(known), 3.5, draw)


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


def _dots(
  found: Mapping[str, Mapping[str, Sequence[float]]], label: str
) -> str:
  names = list(dict.fromkeys(n for by in found.values() for n in by))

  def draw(panels):
    for panel, (title, by) in zip(panels, found.items(), strict=True):
      for name, values in by.items():
        y, colour = names.index(name), figures.COLOURS[0]
        panel.plot(
          values, [y + 0.22] * len(values), 'o', ms=3, c=INK, alpha=0.5
        )
        panel.plot(interval(values), (y, y), c=colour, lw=3, alpha=0.5)
        panel.plot(np.mean(values), y, 'o', ms=7, c=colour)
      panel.set(title=title, xlabel=label, yticks=range(len(names)))
      panel.set_yticklabels(names)
      panel.locator_params(axis='x', nbins=4)
    panels[0].set_ylim(len(names) - 0.5, -0.5)

  return _svg(len(found), 1.3 + 0.32 * len(names), draw)


def _svg(panels: int, height: float, draw: Any) -> str:
  """What `draw` does to panels side by side, with one vertical axis."""
  import matplotlib.pyplot as plt

  with plt.rc_context(THEME):
    figure, grid = plt.subplots(
      1,
      panels,
      figsize=(3.2 * panels + 0.4, height),
      sharey=True,
      squeeze=False,
    )
    draw(list(grid[0]))
    file = io.StringIO()
    figure.savefig(file, format='svg', metadata={'Date': None})
    plt.close(figure)
  return re.sub(r'font-family: [^;"]*;? ?', '', clean(file.getvalue()))


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


def _unit(axis: int, most: float) -> tuple[str, float]:
  """What to count an axis in, and how much of AXES' own it has."""
  if AXES[axis] == 'seconds':
    return figures.time_unit(most)
  if AXES[axis] == 'FLOPs':
    letter, scale = next((x, n) for x, n in FLOPS if most >= n or n == 1)
    return f'{letter}FLOPs', scale
  return AXES[axis], 1
