# SPDX-License-Identifier: Apache-2.0
"""Second moments of gradients, factored over two axes or not, as in T5X."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def factored_axes(shape, smallest):
  """(second largest, largest) axis from the end, or None: not factored."""
  order = np.argsort(shape, kind='stable')
  if len(shape) < 2 or shape[order[-2]] < smallest:
    return None
  return tuple(int(axis) - len(shape) for axis in order[-2:])


def init_slots(shape, axes, momentum_dtype):
  """Fresh slots of a parameter, under T5X names."""
  slots = {'m': jnp.zeros(shape, momentum_dtype)} if momentum_dtype else {}
  if axes is None:
    return slots | {'v': jnp.zeros(shape)}
  small, large = axes
  row, col = np.delete(shape, large), np.delete(shape, small)
  return slots | {'v_row': jnp.zeros(row), 'v_col': jnp.zeros(col)}


def second_moments(g, slots, axes, decay, epsilon):
  """The slots after a gradient: full, or row and column means."""

  def mix(name, new):
    # Not simplified: T5X rounds twice, which at t = 1e6 is 0.1% of 1 - decay.
    return decay * slots[name] + (1 - decay) * (new + epsilon)

  if axes is None:
    return {'v': mix('v', g * g)}
  small, large = axes
  # Two squares, or XLA writes the one to memory for both means.
  again = jax.lax.optimization_barrier(g)
  return {
    'v_row': mix('v_row', jnp.mean(g * g, large)),
    'v_col': mix('v_col', _mean_square(again, small)),
  }


def _mean_square(g, axis):
  """Over the shorter axis of a matrix.

  On CPUs, XLA's own mean over rows that are long goes through memory column by
  column: row by row is 15 times faster for a vocabulary's.
  """
  whole = functools.partial(_mean_square_whole, axis=axis)
  if axis == -1:
    return whole(g)
  by_row = functools.partial(_mean_square_by_row, axis=axis)
  return jax.lax.platform_dependent(g, cpu=by_row, default=whole)


def _mean_square_whole(g, axis):
  return jnp.mean(g * g, axis)


def _mean_square_by_row(g, axis):
  def add(i, total):
    row = jax.lax.dynamic_index_in_dim(g, i, g.ndim + axis, keepdims=False)
    return total + row * row

  zeros = jnp.zeros(np.delete(g.shape, axis), g.dtype)
  return jax.lax.fori_loop(0, g.shape[axis], add, zeros) / g.shape[axis]


def precondition(g, slots, axes):
  """g over the root of its second moments, of rank one if factored."""
  if axes is None:
    return g * jax.lax.rsqrt(slots['v'])
  small, large = axes
  row, col = slots['v_row'], slots['v_col']
  mean = jnp.mean(row, small + (small < large), keepdims=True)
  row, col = jax.lax.rsqrt(row / mean), jax.lax.rsqrt(col)
  return g * jnp.expand_dims(row, large) * jnp.expand_dims(col, small)


def rms(x, axes):
  """Root mean square over axes, which are kept."""
  return jnp.sqrt(jnp.mean(x * x, axes, keepdims=True))
