# SPDX-License-Identifier: Apache-2.0
"""Schedules: functions of the global step, which goes on from the dense run."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np
import optax

Schedule = Callable[[Int[Array, ''] | int], Float[Array, '']]


def constant(value: float) -> Schedule:
  """The same learning rate at every step."""
  return lambda step: jnp.full(jnp.shape(step), value, jnp.float32)


def inverse_sqrt(base: float = 1.0, warmup: int = 10_000) -> Schedule:
  """base / sqrt(max(step, warmup)): flat, then decaying.

  T5's pretraining schedule, 0.01 at first (Raffel et al., 2020, section 3.1.2).
  """
  return lambda step: base / jnp.sqrt(jnp.maximum(jnp.float32(step), warmup))


def rsqrt(
  peak: float,
  warmup: int,
  timescale: int,
  total: int | None = None,
  cooldown: int = 0,
) -> Schedule:
  """Linear warmup, peak / sqrt(1 + t / timescale), linear cooldown to zero.

  t counts from the end of the warmup and stands still during the cooldown, the
  last `cooldown` of `total` steps (Zhai et al., 2022, arXiv 2106.04560).

  Raises:
    ValueError: a cooldown without total, or phases longer than total.
  """
  last = np.inf if total is None else total - warmup - cooldown
  if last < 0 or (cooldown and total is None):
    raise ValueError(
      f'A schedule of {total} steps has no room for a warmup of {warmup} and '
      f'a cooldown of {cooldown}: set a larger total.'
    )

  def schedule(step):
    step = jnp.float32(step)
    lr = peak / jnp.sqrt(1 + jnp.clip(step - warmup, 0, last) / timescale)
    if warmup:
      lr *= jnp.clip(step / warmup, 0, 1)
    if cooldown:
      lr *= jnp.clip((total - step) / cooldown, 0, 1)
    return lr

  return schedule


def cosine(peak: float, warmup: int, total: int, end: float = 0.0) -> Schedule:
  """Linear warmup, then half a cosine from peak to `end` at step `total`."""
  decay = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, total, end)
  return lambda step: jnp.float32(decay(step))


def linear(peak: float, warmup: int, total: int, end: float = 0.0) -> Schedule:
  """Linear warmup, then a straight line from peak to `end` at step `total`."""
  up = optax.linear_schedule(0.0, peak, warmup)
  down = optax.linear_schedule(peak, end, total - warmup)
  decay = optax.join_schedules([up, down], [warmup])
  return lambda step: jnp.float32(decay(step))
