# SPDX-License-Identifier: Apache-2.0
"""Timing on shared machines: what is compared takes turns in one process."""

from collections.abc import Callable, Mapping
import os
import platform
import statistics
import time

import jax

Runs = Mapping[str, Callable[[], object]]


def in_turn(
  runs: Runs, *, seconds: float = 0.0, rounds: int = 5
) -> dict[str, list[float]]:
  """Seconds of each run in every round, after one round that warms up.

  Args:
    runs: by name; each returns when its work is done.
    seconds: rounds go on for at least as long.
    rounds: how many there are at least.
  """
  times: dict[str, list[float]] = {name: [] for name in runs}
  end = None
  while end is None or time.perf_counter() < end or rounds > 0:
    for name, run in runs.items():
      began = time.perf_counter()
      run()
      times[name].append(time.perf_counter() - began)
    if end is None:
      times, end = {name: [] for name in runs}, time.perf_counter() + seconds
    else:
      rounds -= 1
  return times


def median_ratio(above: list[float], below: list[float]) -> float:
  """The median of the rounds' ratios: a slow moment slows both."""
  return statistics.median(a / b for a, b in zip(above, below, strict=True))


def machine() -> dict[str, str | int]:
  """What the numbers depend on."""
  return {
    'processor': _processor(),
    'cores': len(os.sched_getaffinity(0)),
    'python': platform.python_version(),
    'jax': jax.__version__,
    'tunables': os.environ.get('GLIBC_TUNABLES', ''),
  }


def _processor() -> str:
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as lines:
      found = dict(line.split(':', 1) for line in lines if ':' in line)
  except OSError:
    return platform.processor() or platform.machine()
  facts = {key.strip(): value.strip() for key, value in found.items()}
  names = 'model name', 'cpu family', 'model', 'stepping'
  return ', '.join(facts[n] for n in names if n in facts)
