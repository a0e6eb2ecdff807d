# SPDX-License-Identifier: Apache-2.0
"""What a run writes down, reading it again, statistics and figures."""

from upcycle.results.figures import STYLE, comparison_figure, save
from upcycle.results.folder import CONFIG, Busy, check_folder, held
from upcycle.results.metrics import (
  Writer,
  append,
  curve,
  interval,
  read,
  write_text,
)
from upcycle.results.progress import Progress

__all__ = [
  'CONFIG',
  'STYLE',
  'Busy',
  'Progress',
  'Writer',
  'append',
  'check_folder',
  'comparison_figure',
  'curve',
  'held',
  'interval',
  'read',
  'save',
  'write_text',
]
