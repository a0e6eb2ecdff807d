# SPDX-License-Identifier: Apache-2.0
"""Schedules, an expert-aware Adafactor, AdamW and SGD.

A schedule is a function of the global step, which goes on from the dense
checkpoint. Rules are ordered (regex, value) pairs on 'a/b/c' paths, of which
the first that matches the whole path counts.
"""

from collections.abc import Callable, Sequence
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np
import optax

Schedule = Callable[[Int[Array, ''] | int], Float[Array, '']]
Tree = Any

# Leading axes of a parameter that hold independent matrices, one an expert.
EXPERT_AXES = ((r'(.*/)?expert/.*', 1), (r'(.*/)?Moe/Mlp/.*', 1))


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


class AdafactorState(NamedTuple):
  """The global step, and in place of each parameter T5X's slots in a dict.

  'v', or 'v_row' and 'v_col' if it is factored; 'm' if there is momentum.
  """

  count: Int[Array, '']
  slots: Tree


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
      axes = _factored_axes(p.shape[_lookup(path, batch_axes) :], smallest)
      return _init_slots(p.shape, axes, momentum_dtype if beta1 else None)

    return AdafactorState(jnp.int32(0), _map_with_path(slots, params))

  def update_leaf(path, p, g, slots, lr, decay):
    batch = _lookup(path, batch_axes)
    matrix = tuple(range(batch - p.ndim, 0))
    axes = _factored_axes(p.shape[batch:], smallest)
    g = g.astype(jnp.float32)
    new = moments = _second_moments(g, slots, axes, decay, epsilon1)
    if multiply_by_parameter_scale:
      lr *= jnp.maximum(_rms(p.astype(jnp.float32), matrix), epsilon2)
    if clipping_threshold is not None:
      rms = _rms(_precondition(g, new, axes), matrix)
      lr /= jnp.maximum(1, rms / clipping_threshold)
      # Computed again for the step: otherwise XLA keeps an array of its size.
      moments = jax.lax.optimization_barrier(new)
    step = lr * _precondition(g, moments, axes)
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
    pairs = _map_with_path(leaf, params, grads, slots)
    updates = jax.tree.map(lambda _, pair: pair[0], params, pairs)
    slots = jax.tree.map(lambda _, pair: pair[1], params, pairs)
    return updates, AdafactorState(count + 1, slots)

  return optax.GradientTransformation(init, update)


def _factored_axes(shape, smallest):
  """(second largest, largest) axis from the end, or None: not factored."""
  order = np.argsort(shape, kind='stable')
  if len(shape) < 2 or shape[order[-2]] < smallest:
    return None
  return tuple(int(axis) - len(shape) for axis in order[-2:])


def _init_slots(shape, axes, momentum_dtype):
  slots = {'m': jnp.zeros(shape, momentum_dtype)} if momentum_dtype else {}
  if axes is None:
    return slots | {'v': jnp.zeros(shape)}
  small, large = axes
  row, col = np.delete(shape, large), np.delete(shape, small)
  return slots | {'v_row': jnp.zeros(row), 'v_col': jnp.zeros(col)}


def _second_moments(g, slots, axes, decay, epsilon):
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
    'v_col': mix('v_col', jnp.mean(again * again, small)),
  }


def _precondition(g, slots, axes):
  """g over the root of its second moments, of rank one if factored."""
  if axes is None:
    return g * jax.lax.rsqrt(slots['v'])
  small, large = axes
  row, col = slots['v_row'], slots['v_col']
  mean = jnp.mean(row, small + (small < large), keepdims=True)
  row, col = jax.lax.rsqrt(row / mean), jax.lax.rsqrt(col)
  return g * jnp.expand_dims(row, large) * jnp.expand_dims(col, small)


def _rms(x, axes):
  return jnp.sqrt(jnp.mean(x * x, axes, keepdims=True))


def adamw(
  learning_rate: float | Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  mu_dtype: Any = None,
  weight_decay: Sequence[tuple[str, float]] = (),
  clip_norm: float | None = None,
) -> optax.GradientTransformation:
  """Adam after clipping by global norm, with decoupled weight decay by rules.

  A parameter loses learning rate * rate * parameter a step, as in vmoe, whose
  ViT rates are (('head/kernel', 3.0), ('.*/kernel', 0.03)).
  """
  adam = optax.scale_by_adam(b1, b2, mu_dtype=mu_dtype)
  return _chain(adam, learning_rate, weight_decay, clip_norm)


def sgd(
  learning_rate: float | Schedule,
  *,
  momentum: float = 0.9,
  weight_decay: Sequence[tuple[str, float]] = (),
  clip_norm: float | None = None,
) -> optax.GradientTransformation:
  """SGD with momentum; weight decay and clipping as in `adamw`."""
  return _chain(optax.trace(momentum), learning_rate, weight_decay, clip_norm)


def _chain(scale, learning_rate, weight_decay, clip_norm):
  return optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
    scale,
    _add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(learning_rate),
  )


def _add_decayed_weights(rules):
  def init(params):
    paths = jax.tree.leaves(_map_with_path(lambda path, _: path, params))
    idle = [r for r, _ in rules if not any(re.fullmatch(r, p) for p in paths)]
    if idle:
      raise ValueError(f'Weight decay rules that match no parameter: {idle}.')
    return optax.EmptyState()

  def update(updates, state, params=None):
    def leaf(path, u, p):
      rate = _lookup(path, rules)
      return u + rate * p if rate else u

    return _map_with_path(leaf, updates, params), state

  return optax.GradientTransformation(init, update)


def with_step(opt_state: Tree, step: int, *, keep_adam: bool = False) -> Tree:
  """Sets every `count` of our or optax's states to the global step.

  So that schedules go on from the dense checkpoint's step. With keep_adam the
  count by which Adam corrects the bias of its moments stays: fresh moments
  need it, or their updates are up to 6.5 times too large.
  """

  def leaf(path, x):
    is_count = path and getattr(path[-1], 'name', None) == 'count'
    return jnp.full_like(x, step) if is_count else x

  kept = optax.ScaleByAdamState if keep_adam else ()
  return jax.tree_util.tree_map_with_path(
    leaf, opt_state, is_leaf=lambda x: isinstance(x, kept)
  )


def _lookup(path, rules):
  return next((v for r, v in rules if re.fullmatch(r, path)), 0)


def _map_with_path(fn, tree, *rest):
  def leaf(path, *xs):
    return fn(jax.tree_util.keystr(path, simple=True, separator='/'), *xs)

  return jax.tree_util.tree_map_with_path(leaf, tree, *rest)
