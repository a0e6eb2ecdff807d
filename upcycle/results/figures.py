# SPDX-License-Identifier: Apache-2.0
"""Figures of one style; matplotlib is imported when the first is drawn."""

from collections.abc import Mapping, Sequence
import os
from pathlib import Path
from typing import Any

import numpy as np

from upcycle.results.metrics import Row, interval

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
MARKERS = ('o', 's', '^', 'D', 'v', 'P')
STYLE = {
  'figure.facecolor': 'white',
  'figure.constrained_layout.use': True,
  'figure.constrained_layout.w_pad': 0.12,
  'font.size': 11,
  'axes.titlesize': 12,
  'axes.titlelocation': 'left',
  'axes.labelcolor': '#333333',
  'axes.edgecolor': '#888888',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': '#E6E6E6',
  'xtick.color': '#555555',
  'ytick.color': '#555555',
  'legend.frameon': False,
  'lines.linewidth': 2.0,
  'lines.markersize': 4.5,
  'savefig.dpi': 160,
  # With no date among the metadata, equal figures are equal files.
  'svg.hashsalt': 'upcycle',
}


def save(figure: Any, path: str | os.PathLike) -> list[Path]:
  """Writes path.svg and path.png; the same figure gives the same bytes."""
  import matplotlib.pyplot as plt

  files = [Path(path).with_suffix(suffix) for suffix in ('.svg', '.png')]
  for file, metadata in zip(files, ({'Date': None}, None), strict=True):
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_stem(file.stem + '.tmp')
    with plt.rc_context(STYLE):
      figure.savefig(new, metadata=metadata)
    new.replace(file)
  return files


def comparison_figure(
  path: str | os.PathLike,
  arms: Mapping[str, Sequence[Row] | Sequence[Sequence[Row]]],
  *,
  metrics: Mapping[str, str] | None = None,
  dense: Mapping[str, float] | None = None,
  title: str | None = None,
) -> list[Path]:
  """Arms that start from one checkpoint, per extra step and per extra time.

  The first point of an arm is right after the surgery, the initial drop; if it
  lies far off all others it is drawn at the edge, with its value.

  Args:
    path: of the figure, without a suffix.
    arms: by label, the rows of a run, or of several (seeds) of equal steps:
      their mean is drawn, with its 95% interval. Rows have 'step', 'seconds'
      of compute, and some of the metrics.
    metrics: label of the vertical axis by name, one row of panels each; None:
      the validation loss.
    dense: the level of the dense checkpoint, by metric.
    title: over all panels.

  Returns:
    The files written: SVG and PNG.

  Raises:
    ValueError: runs of an arm without a metric, or at different steps.
  """
  import matplotlib.pyplot as plt

  metrics = metrics or {'loss': 'validation loss'}
  with plt.rc_context(STYLE):
    figure, grid = plt.subplots(
      len(metrics),
      2,
      figsize=(9.6, 0.4 + 3.8 * len(metrics)),
      sharex='col',
      sharey='row',
      squeeze=False,
    )
    for axes, (name, label) in zip(grid, metrics.items(), strict=True):
      curves = {key: _arm(key, rows, name) for key, rows in arms.items()}
      unit = _panels(axes, curves, (dense or {}).get(name))
      axes[0].set(ylabel=label)
    grid[0, 0].set(title='per step')
    grid[0, 1].set(title='per compute time')
    grid[-1, 0].set(xlabel='extra steps')
    grid[-1, 1].set(xlabel=f'extra compute time ({unit})')
    grid[0, 1].legend(loc='best')
    if title:
      figure.suptitle(title, x=0.01, ha='left', weight='bold')
    files = save(figure, path)
    plt.close(figure)
  return files


def _panels(axes, curves, dense):
  """One metric per step and per time; returns the unit of time."""
  most = max(seconds[-1] for _, seconds, _ in curves.values())
  unit, scale = time_unit(most)
  low, high = limits([values for _, _, values in curves.values()], dense)
  for i, (key, (steps, seconds, values)) in enumerate(curves.items()):
    style = {'color': COLOURS[i % 6], 'marker': MARKERS[i % 6]}
    for axis, x in zip(axes, (steps, seconds / scale), strict=True):
      draw(axis, x, values, low, high, label=key, **style)
  level = {'color': '#666666', 'ls': '--', 'lw': 1.3, 'zorder': 1}
  for axis in axes:
    if dense is not None:
      axis.axhline(dense, label='dense checkpoint', **level)
    axis.set_ylim(low, high)
    axis.set_xlim(left=-0.025 * axis.get_xlim()[1])
  return unit


def _arm(key, runs, name):
  """(steps [N], seconds [N], values [R, N]), counted from the first row."""
  runs = runs if runs and isinstance(runs[0], Sequence) else [runs]
  tables = [
    np.array([(r['step'], r['seconds'], r[name]) for r in rows if name in r])
    for rows in runs
  ]
  if not all(
    len(t) and np.array_equal(t[:, 0], tables[0][:, 0]) for t in tables
  ):
    raise ValueError(
      f'The runs of {key!r} must have rows with {name!r}, at the same steps.'
    )
  steps, seconds, values = np.stack(tables).transpose(2, 0, 1)
  steps, seconds = steps.mean(0), seconds.mean(0)
  return steps - steps[0], seconds - seconds[0], values


def time_unit(seconds):
  """What to count so many seconds in, and how many of them it has."""
  for unit, scale in (('hours', 3600), ('minutes', 60)):
    if seconds > 2 * scale:
      return unit, scale
  return 'seconds', 1


def limits(curves, dense):
  """Vertical limits: of what curves come to, and of first points near it.

  That of a model from scratch leaves the figure at its top: what is compared
  would else be a line at its bottom.
  """
  means = [values.mean(0) for values in curves]
  later = np.concatenate([m[max(1, len(m) // 3) :] for m in means])
  later = np.append(later, [] if dense is None else dense)
  low, high = np.nanmin(later), np.nanmax(later)
  span = (high - low) or abs(high) or 1.0
  firsts = np.array([m[0] for m in means])
  near = firsts[(firsts > low - 2 * span) & (firsts < high + 2 * span)]
  low, high = min([low, *near]), max([high, *near])
  margin = 0.06 * ((high - low) or span)
  # Room for the marks of what lies outside.
  low -= margin * (3 if (firsts < low).any() else 1)
  high += margin * (3 if (firsts > high).any() else 1)
  return low, high


def draw(axis, x, values, low, high, *, label, marks=16, **style):
  """The mean of R runs' values [R, N], its band, and its first point.

  That one is at the edge, with its value, if it is not between low and high.
  About as many points as `marks` have a mark.
  """
  mean, style = values.mean(0), {**style, 'mec': axis.get_facecolor()}
  every = max(1, len(x) // marks)
  axis.plot(x, mean, label=label, markevery=every, **style)
  if len(values) > 1:
    band = {'color': style['color'], 'alpha': 0.2, 'lw': 0}
    axis.fill_between(x, *interval(values), **band)
  first = mean[0]
  if not low <= first <= high:
    margin = 0.07 * (high - low)
    shown = np.clip(first, low + margin, high - margin)
    _off_scale(axis, x[0], shown, first, style['color'])
    first = shown
  axis.plot(x[0], first, ms=10, zorder=5, **style)


def _off_scale(axis, x, y, value, color):
  axis.annotate(
    f'{"↑" if value > y else "↓"} {value:.3g}',
    (x, y),
    (10, 0),
    textcoords='offset points',
    color=color,
    va='center',
    weight='bold',
    bbox={'fc': axis.get_facecolor(), 'ec': 'none', 'pad': 1.5},
    zorder=6,
  )
