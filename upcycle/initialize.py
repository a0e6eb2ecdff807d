# SPDX-License-Identifier: Apache-2.0
"""The state that a run starts with: from a checkpoint or from scratch."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from upcycle import (
  checkpoints,
  losses,
  optim,
  receipt,
  surgery,
  trees,
)
from upcycle import expert_init as inits

Loss = Callable[..., losses.Sums]


class TrainState(NamedTuple):
  """What a step changes: the global step, parameters, optimizer state."""

  step: jax.Array
  params: Any
  opt_state: Any


@dataclasses.dataclass(frozen=True)
class InitFrom:
  """A checkpoint to start from, upcycled where the model is sparse.

  Attributes:
    path: of any format that `checkpoints.read` knows.
    expert_init: from a dense MLP's parameter to all experts' ones.
    optimizer_state: 'fresh', or 'expand': the source's, where each expert has
      a copy of its MLP's statistics.
    step: the step to go on from; None: the source's, which it must record.
  """

  path: str
  expert_init: surgery.ExpertInit = inits.copy
  optimizer_state: str = 'fresh'
  step: int | None = None

  def __post_init__(self):
    if self.optimizer_state not in ('fresh', 'expand'):
      raise ValueError(
        f"optimizer_state is 'fresh' or 'expand', not {self.optimizer_state!r}."
      )


def from_scratch(
  model: Any, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
  """A fresh state at step 0; pure, for jit and eval_shape."""
  params = init_params(model, seed)
  return TrainState(jnp.int32(0), params, optimizer.init(params))


def init_params(model: Any, seed: int) -> Any:
  """The model's own initialisation; pure, for jit and eval_shape."""
  inputs = model.example_inputs()
  return model.init(jax.random.key(seed), **inputs)['params']


def param_shapes(model: Any) -> Any:
  """Shapes and dtypes of the model's parameters."""
  return jax.eval_shape(lambda: init_params(model, 0))


def upcycled(
  source: checkpoints.Checkpoint,
  model: Any,
  seed: int,
  expert_init: surgery.ExpertInit = inits.copy,
) -> Any:
  """The model's parameters made from a checkpoint, lazy where that is lazy.

  Raises:
    ValueError: the checkpoint does not fit the model.
  """
  shapes = param_shapes(model)
  found = surgery.origins(source.params, shapes)
  new = [path for path, origin in found.items() if origin.kind == 'fresh']

  @jax.jit
  def fresh():
    # Whatever is not asked for is dropped by the compiler, not computed.
    params = trees.flatten(init_params(model, seed))
    return {path: params[path] for path in new}

  return surgery.upcycle(
    source.params,
    shapes,
    key=jax.random.key(seed),
    expert_init=expert_init,
    fresh=fresh(),
  )


def from_checkpoint(
  init: InitFrom,
  model: Any,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  batch: Any,
  seed: int,
) -> tuple[TrainState, dict[str, Any]]:
  """The state made from a checkpoint, and the receipt of what was done.

  Raises:
    ValueError: the checkpoint does not fit the model, or has no optimizer
      state to expand; all offenders are listed.
  """
  source = checkpoints.read(init.path)
  surgery.origins(source.params, param_shapes(model))
  expand = init.optimizer_state == 'expand'
  if expand and source.opt_state is None:
    raise ValueError(
      f'{init.path} has no Adafactor state to expand; use '
      "optimizer_state = 'fresh'."
    )
  step = source.step if init.step is None else init.step
  if not step and init.step is None:
    raise ValueError(
      f'{init.path} does not record its step, from which the learning rate '
      'goes on: give InitFrom.step (0 to start the schedule anew).'
    )
  params = _on_device(upcycled(source, model, seed, init.expert_init))
  opt_state = jax.jit(optimizer.init)(params)
  if expand:
    opt_state = _expand(source.opt_state, opt_state)
  # Adam corrects the bias of fresh moments by a count of its own.
  opt_state = optim.with_step(opt_state, step, keep_adam=not expand)
  made_of = {
    **receipt.of_surgery(source, params, init.expert_init, seed),
    'step': step,
    'optimizer_state': init.optimizer_state,
    'step_0': receipt.first_losses(
      model, loss, source.params, params, batch, param_shapes
    ),
  }
  return TrainState(jnp.int32(step), params, opt_state), made_of


def _on_device(tree: Any) -> Any:
  """Arrays of a tree of lazy ones, of which one is read at a time."""
  return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def _expand(source: trees.Tree, state: Any) -> Any:
  """The optimizer state with the source's slots, one copy an expert."""
  if not isinstance(state, optim.AdafactorState):
    raise ValueError("Only Adafactor's state can be expanded.")
  zeros = jax.tree.map(jnp.zeros_like, state.slots)
  slots = surgery.upcycle(
    source, state.slots, key=jax.random.key(0), fresh=zeros
  )
  return state._replace(slots=_on_device(slots))
