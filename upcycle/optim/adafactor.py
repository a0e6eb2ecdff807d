# SPDX-License-Identifier: Apache-2.0
"""Adafactor with T5X's arithmetic, independent for every expert."""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import numpy as np
import optax

from upcycle.optim.moments import (
  factored_axes,
  init_slots,
  precondition,
  rms,
  second_moments,
)
from upcycle.optim.rules import lookup, map_with_path
from upcycle.optim.schedules import Schedule

# Leading axes of a parameter that hold independent matrices, one an expert.
EXPERT_AXES = ((r'(.*/)?expert/.*', 1), (r'(.*/)?Moe/Mlp/.*', 1))


class AdafactorState(NamedTuple):
  """The global step, and in place of each parameter T5X's slots in a dict.

  'v', or 'v_row' and 'v_col' if it is factored; 'm' if there is momentum.
  """

  count: Int[Array, '']
  slots: Any


def adafactor(
  learning_rate: float | Schedule,
  *,
  decay_rate: float = 0.8,
  step_offset: int = 0,
  clipping_threshold: float | None = 1.0,
  multiply_by_parameter_scale: bool = True,
  beta1: float | None = None,
  momentum_dtype: Any = jnp.float32,
  epsilon1: float = 1e-30,
  epsilon2: float = 1e-3,
  min_dim_size_to_factor: int = 128,
  factored: bool = True,
  weight_decay: float | None = None,
  batch_axes: Sequence[tuple[str, int]] = EXPERT_AXES,
) -> optax.GradientTransformation:
  """Adafactor with T5X's constants and arithmetic, independent per expert.

  Statistics, update clipping and parameter scale of a parameter with leading
  batch axes are those of as many separate matrices: what Adafactor would do
  to every expert alone (Shazeer and Stern, 2018, arXiv 1804.04235).

  Args:
    learning_rate: a number, or a function of the global step.
    decay_rate: the second moments decay by 1 - (t + 1)**-decay_rate.
    step_offset: where t starts. Fresh slots at a global step s make raw
      updates (s + 1)**(decay_rate / 2) too large, bounded by the clipping
      alone, which is what T5X does; step_offset=s starts the decay anew.
    clipping_threshold: bound on the RMS of a matrix's update before scaling.
    multiply_by_parameter_scale: by the RMS of the matrix, at least epsilon2.
    min_dim_size_to_factor: second moments are factored over the two largest
      axes of a matrix if both are at least this long.
    weight_decay: share taken off a parameter a step, at any learning rate.
    batch_axes: rules: number of leading batch axes of the paths that match.
  """
  smallest = min_dim_size_to_factor if factored else np.inf

  def init(params):
    def slots(path, p):
      axes = factored_axes(p.shape[lookup(path, batch_axes) :], smallest)
      return init_slots(p.shape, axes, momentum_dtype if beta1 else None)

    return AdafactorState(jnp.int32(0), map_with_path(slots, params))

  def update_leaf(path, p, g, slots, lr, decay):
    batch = lookup(path, batch_axes)
    matrix = tuple(range(batch - p.ndim, 0))
    axes = factored_axes(p.shape[batch:], smallest)
    g = g.astype(jnp.float32)
    new = moments = second_moments(g, slots, axes, decay, epsilon1)
    if multiply_by_parameter_scale:
      lr *= jnp.maximum(rms(p.astype(jnp.float32), matrix), epsilon2)
    if clipping_threshold is not None:
      size = rms(precondition(g, new, axes), matrix)
      lr /= jnp.maximum(1, size / clipping_threshold)
      # Computed again for the step: otherwise XLA keeps an array of its size.
      moments = jax.lax.optimization_barrier(new)
    step = lr * precondition(g, moments, axes)
    if beta1:
      step = beta1 * slots['m'] + (1 - beta1) * step
      new = {**new, 'm': step.astype(momentum_dtype)}
    return -step - weight_decay * p if weight_decay else -step, new

  def update(grads, state, params=None):
    if params is None:
      raise ValueError('Adafactor needs params: update(grads, state, params).')
    count, slots = state
    lr = learning_rate(count) if callable(learning_rate) else learning_rate
    decay = 1 - (jnp.float32(count - step_offset) + 1) ** -decay_rate
    leaf = functools.partial(update_leaf, lr=lr, decay=decay)
    pairs = map_with_path(leaf, params, grads, slots)
    updates = jax.tree.map(lambda _, pair: pair[0], params, pairs)
    slots = jax.tree.map(lambda _, pair: pair[1], params, pairs)
    return updates, AdafactorState(count + 1, slots)

  return optax.GradientTransformation(init, update)
