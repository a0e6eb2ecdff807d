# SPDX-License-Identifier: Apache-2.0
"""Machines that are taken away: SIGTERM, and a run that saves and stops."""

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

# What a supervisor restarts on: sysexits.h's "temporary failure, try again".
EXIT_CODE = os.EX_TEMPFAIL


class Preempted(SystemExit):
  """The run has saved its state and is to be started again."""

  def __init__(self, step: int):
    super().__init__(EXIT_CODE)
    self.step = step

  def __str__(self) -> str:
    return f'Stopped by SIGTERM; the checkpoint of step {self.step} is saved.'


class Watch:
  """Tells a run when to stop; a context manager.

  With several processes all of them stop at the same step: JAX's coordination
  service, which has a handler of its own, agrees on one.

  Args:
    step: that the run starts after.
  """

  def __init__(self, step: int):
    self._step, self._asked, self._before = step, False, None

  def __enter__(self) -> 'Watch':
    self._alone = jax.process_count() == 1
    if not self._alone:
      # The service agrees on the number after the last one it was asked about:
      # on 1 if it was told to stop before, from now on on a step's.
      reached = multihost_utils.reached_preemption_sync_point
      self._asked = any([reached(1), reached(self._step)])
    elif threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._ask)
    return self

  def __exit__(self, *_) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _ask(self, signum: int, frame: FrameType | None) -> None:
    self._asked = True

  def stop(self, step: int) -> bool:
    """Whether to save and stop after this step; all processes ask at each."""
    if self._alone or self._asked:
      return self._asked
    return multihost_utils.reached_preemption_sync_point(step)
