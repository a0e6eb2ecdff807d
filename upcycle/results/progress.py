# SPDX-License-Identifier: Apache-2.0
"""One line that says how far a run is: a live one, or one now and then."""

import datetime
import sys
import time
from typing import Any

import numpy as np


class Progress:
  """A line of step, metrics and remaining time; a context manager.

  Args:
    start: the first step.
    end: the last step.
    every: seconds between lines where standard output is no terminal.
    enabled: False in all processes but the first.
  """

  def __init__(
    self, start: int, end: int, *, every: float = 30.0, enabled: bool = True
  ):
    self._start, self._end = start, end
    self._live = sys.stdout.isatty()
    self._every = 0.5 if self._live else every
    self._enabled = enabled
    self._values: dict[str, Any] = {}
    self._began: tuple[float, int] | None = None
    self._shown = -np.inf

  def __enter__(self) -> 'Progress':
    if self._enabled and self._live:
      from rich import progress

      self._bar = progress.Progress(
        progress.BarColumn(bar_width=24),
        progress.TextColumn('{task.description}'),
        auto_refresh=False,
      )
      self._task = self._bar.add_task('', total=self._end - self._start)
      self._bar.start()
    return self

  def __exit__(self, *_) -> None:
    if self._enabled and self._live:
      self._bar.stop()

  def update(self, step: int, **values: Any) -> None:
    """Shows step and values, if it is time to; else it costs next to nothing.

    Values are converted to numbers only when they are shown: arrays that are
    still being computed are not waited for.
    """
    self._values |= values
    now = time.monotonic()
    self._began = self._began or (now, step)
    due = now - self._shown >= self._every or step == self._end
    if not (self._enabled and due):
      return
    self._shown = now
    line = self._line(step, now)
    if self._live:
      self._bar.update(
        self._task,
        completed=step - self._start,
        description=line,
        refresh=True,
      )
    else:
      print(line, flush=True)

  def _line(self, step: int, now: float) -> str:
    began, first = self._began
    parts = [f'step {step:,}/{self._end:,}']
    parts += [_show(name, float(v)) for name, v in self._values.items()]
    if first < step < self._end:
      left = (now - began) / (step - first) * (self._end - step)
      parts.append(f'ETA {datetime.timedelta(seconds=round(left))}')
    return '  '.join(parts)


def _show(name: str, value: float) -> str:
  """'loss 3.217', '12.3k tokens/s' for tokens_per_second."""
  unit = name.removesuffix('_per_second')
  if unit == name:
    return f'{name} {value:.4g}'
  short = f'{value / 1000:.1f}k' if value >= 1000 else f'{value:.1f}'
  return f'{short} {unit}/s'
