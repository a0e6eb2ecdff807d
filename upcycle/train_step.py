# SPDX-License-Identifier: Apache-2.0
"""One step of training: a pure function of the state and a batch."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from upcycle import losses, partition
from upcycle.initialize import TrainState


def make_train_step(
  model: Any,
  loss: Callable[..., losses.Sums],
  optimizer: optax.GradientTransformation,
  *,
  microbatches: int = 1,
  seed: int = 0,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """A pure (state, batch) -> (state, metrics), to be jitted and donated.

  The objective is the mean loss of the batch's targets plus the auxiliary
  losses. With microbatches, gradients are summed over equal parts of the batch
  before they are divided, so the mean is that of the whole batch.
  """

  def objective(params, batch, key):
    sown = {}

    def apply(**inputs):
      logits, variables = model.apply(
        {'params': params},
        **inputs,
        deterministic=False,
        rngs={'dropout': key},
        mutable=['losses', 'metrics'],
      )
      sown.update(variables)
      return logits

    sums = loss(apply, batch)
    aux = losses.auxiliary(sown.get('losses', {}))
    total = sums['loss'] + sums['z_loss'] + sums['weight'] * sum(aux.values())
    weighted = {k: sums['weight'] * v for k, v in aux.items()}
    layers = losses.sown(sown.get('metrics', {}))
    layers = {k: v / microbatches for k, v in layers.items()}
    return total, {**sums, **weighted, 'total': total, 'layers': layers}

  def gradients(params, batch, key):
    return jax.grad(objective, has_aux=True)(params, batch, key)

  def train_step(state: TrainState, batch: Any):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    if microbatches == 1:
      grads, sums = gradients(state.params, batch, key)
    else:
      grads, sums = _accumulate(
        functools.partial(gradients, state.params), batch, key, microbatches
      )
    layers, weight = sums.pop('layers'), sums.pop('weight')
    grads = jax.tree.map(lambda g: g / weight, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {k: v / weight for k, v in sums.items()}
    metrics['gradient_norm'] = optax.tree.norm(grads)
    metrics['layers'] = layers
    return TrainState(state.step + 1, params, opt_state), metrics

  return train_step


def compile_step(train_step: Callable, state: TrainState, batch: Any) -> Any:
  """The step for these shapes, whose state comes out as it went in.

  Args:
    train_step: of `make_train_step`.
    state: arrays, or shapes with shardings; donated when the step is run.
    batch: likewise.
  """
  places = jax.tree.map(lambda x: x.sharding, state)
  step = jax.jit(
    train_step,
    donate_argnums=0,
    out_shardings=(places, partition.replicated()),
  )
  return step.lower(state, batch).compile()


def _accumulate(gradients, batch, key, parts):
  """Sums of gradients(part, key) over equal parts of the batch."""
  # Every so many rows: of each device's own ones, which stay where they are.
  split = jax.tree.map(
    lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch
  )
  keys = jax.random.split(key, parts)
  shapes = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], split), key)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def add(total, part):
    return jax.tree.map(jnp.add, total, gradients(*part)), None

  return jax.lax.scan(add, zeros, (split, keys))[0]
