# SPDX-License-Identifier: Apache-2.0
"""The state that a run starts with: from a checkpoint or from scratch."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from upcycle import checkpoints
from upcycle import evaluate
from upcycle import expert_init as inits
from upcycle import losses
from upcycle import optim
from upcycle import surgery
from upcycle import trees

Loss = Callable[..., losses.Sums]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
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
    reset_step: start at step 0 instead of going on from the source's step.
  """

  path: str
  expert_init: surgery.ExpertInit = inits.copy
  optimizer_state: str = 'fresh'
  reset_step: bool = False

  def __post_init__(self):
    if self.optimizer_state not in ('fresh', 'expand'):
      raise ValueError(
        "optimizer_state is 'fresh' or 'expand', not "
        f'{self.optimizer_state!r}.'
      )


def from_scratch(
  model: Any,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  batch: Any,
  seed: int,
) -> TrainState:
  """A fresh state at step 0; pure, for jit and eval_shape."""
  params = init_params(model, loss, batch, seed)
  return TrainState(jnp.int32(0), params, optimizer.init(params))


def init_params(model: Any, loss: Loss, batch: Any, seed: int) -> Any:
  """The model's own initialisation, on the inputs that `loss` gives it."""
  made = {}

  def apply(**inputs):
    logits, made['variables'] = model.init_with_output(
      jax.random.key(seed), **inputs
    )
    return logits

  loss(apply, batch)
  return made['variables']['params']


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
  shapes = jax.eval_shape(lambda: init_params(model, loss, batch, seed))
  found = surgery.origins(source.params, shapes)
  if init.optimizer_state == 'expand' and source.opt_state is None:
    raise ValueError(
      f'{init.path} has no optimizer state to expand; use '
      "optimizer_state = 'fresh'."
    )
  new = [path for path, origin in found.items() if origin.kind == 'fresh']
  # Whatever is not asked for is dropped by the compiler, not computed.
  fresh = jax.jit(
    lambda: {
      path: trees.flatten(init_params(model, loss, batch, seed))[path]
      for path in new
    }
  )()
  params = surgery.upcycle(
    source.params,
    shapes,
    key=jax.random.key(seed),
    expert_init=init.expert_init,
    fresh=fresh,
  )
  params = _on_device(params)
  opt_state = jax.jit(optimizer.init)(params)
  if init.optimizer_state == 'expand':
    opt_state = _expand(source.opt_state, opt_state)
  step = 0 if init.reset_step else source.step
  opt_state = optim.with_step(opt_state, step)
  receipt = {
    'source': {**source.metadata, 'step': source.step},
    'step': step,
    'optimizer_state': init.optimizer_state,
    **surgery.receipt(source.params, shapes),
    'step_0': _first_losses(model, loss, source.params, params, batch, seed),
  }
  return TrainState(jnp.int32(step), params, opt_state), receipt


def _on_device(tree: Any) -> Any:
  """Arrays of a tree of lazy ones, of which one is read at a time."""
  return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def _expand(source: trees.Tree, state: Any) -> Any:
  """The optimizer state with the source's slots, one copy an expert."""
  zeros = jax.tree.map(jnp.zeros_like, state.slots)
  slots = surgery.upcycle(
    source, state.slots, key=jax.random.key(0), fresh=zeros
  )
  return state._replace(slots=_on_device(slots))


def _first_losses(
  model: Any, loss: Loss, source: Any, params: Any, batch: Any, seed: int
) -> dict[str, Any]:
  """Losses on one batch before and after surgery, and what lies between.

  Without renormalisation an upcycled layer returns its dense MLP's output
  times the sum of a token's combine weights, its scale. What the router's
  initialisation lets expect stands beside what the batch shows.
  """
  values: dict[str, Any] = {'loss': _mean_loss(model, loss, params, batch)}
  expected = model.expected_scales()
  if not expected:
    return values
  measured = _metrics(model, loss, params, batch)
  values['scale'] = {
    path: {'expected': scale, 'measured': float(measured[f'{path}/scale'])}
    for path, scale in expected.items()
  }
  dense = model.dense()
  shapes = jax.eval_shape(lambda: init_params(dense, loss, batch, seed))
  if not trees.diff(shapes, source):
    before = _on_device(source)
    values['dense_loss'] = _mean_loss(dense, loss, before, batch)
  return values


def _metrics(model: Any, loss: Loss, params: Any, batch: Any) -> Any:
  """What the MoE layers sow on a batch, as in evaluation."""

  @jax.jit
  def run(params, batch):
    sown = {}

    def apply(**inputs):
      logits, variables = model.apply(
        {'params': params}, **inputs, deterministic=True, mutable=['metrics']
      )
      sown.update(variables)
      return logits

    loss(apply, batch)
    return losses.sown(sown['metrics'])

  return run(params, batch)


def _mean_loss(model: Any, loss: Loss, params: Any, batch: Any) -> float:
  step = evaluate.make_eval_step(model, loss)
  return evaluate.evaluate(step, params, [batch])['loss']
