# SPDX-License-Identifier: Apache-2.0
"""Machines that are taken away: SIGTERM, and a run that saves and stops."""

import os
import signal
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
  """Tells a run when to stop; a context manager, used by the main thread.

  With several processes all of them stop at the same step: JAX's coordination
  service, which has a handler of its own, agrees on one.
  """

  def __enter__(self) -> 'Watch':
    self._asked = False
    self._alone = jax.process_count() == 1
    if self._alone:
      self._before = signal.signal(signal.SIGTERM, self._ask)
    return self

  def __exit__(self, *_) -> None:
    if self._alone:
      signal.signal(signal.SIGTERM, self._before)

  def _ask(self, signum: int, frame: FrameType | None) -> None:
    self._asked = True

  def stop(self, step: int) -> bool:
    """Whether to save and stop after this step; all processes ask at each."""
    if self._alone:
      return self._asked
    return multihost_utils.reached_preemption_sync_point(step)
