# SPDX-License-Identifier: Apache-2.0
"""What every reader returns: a `Checkpoint` of `LazyArray` leaves."""

import dataclasses
from typing import Any

from upcycle.trees import LazyArray

__all__ = ['Checkpoint', 'LazyArray']


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint as read: nothing but names, shapes and dtypes is in memory.

  Attributes:
    params: nested dict of `LazyArray`, under the names of T5X or vit_jax.
    step: the step it was written at; 0 where the format records none.
    opt_state: nested dict of `LazyArray`: the path of the parameter, then its
      slots in use (Adafactor's `v`, or `v_row` and `v_col`; `m`; for others
      see `slots`). None if there is no optimizer state.
    metadata: `format`, `path`, what else the reader found worth saying, and
      `model`: the arguments of a `T5Config` or `ViTConfig` as far as the
      format tells them.
  """

  params: dict[str, Any]
  step: int
  opt_state: dict[str, Any] | None
  metadata: dict[str, Any]
