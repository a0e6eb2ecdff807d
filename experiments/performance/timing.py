# SPDX-License-Identifier: Apache-2.0
"""Timing on shared machines: what is compared takes turns in one process."""

from collections.abc import Callable, Mapping
import os
import platform
import time

import jax
import numpy as np

Runs = Mapping[str, Callable[[], object]]
CLOCKS = time.perf_counter, time.process_time


def in_turn(
  runs: Runs, *, seconds: float = 0.0, rounds: int = 5
) -> dict[str, np.ndarray]:
  """Milliseconds of each run by round, after one round that warms up.

  Args:
    runs: by name; each returns when its work is done.
    seconds: rounds go on for at least as long.
    rounds: how many there are at least.

  Returns:
    By name [rounds, 2]: by the clock, and of all cores together, which other
    processes disturb less.
  """
  times = {name: [] for name in runs}
  end = np.inf
  while len(min(times.values(), key=len)) <= rounds or time.time() < end:
    for name, run in runs.items():
      began = [clock() for clock in CLOCKS]
      run()
      times[name].append([clock() for clock in CLOCKS] - np.array(began))
    end = min(end, time.time() + seconds)
  return {name: 1e3 * np.array(found[1:]) for name, found in times.items()}


def median_ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
  """Medians [2] of the rounds' ratios: a slow moment slows both."""
  return np.median(above / below, axis=0)


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
