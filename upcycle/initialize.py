# SPDX-License-Identifier: Apache-2.0
"""The state that a run starts with: from a checkpoint or from scratch."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from upcycle import (
  checkpoints,
  compatibility,
  depth,
  losses,
  optim,
  partition,
  receipt,
  surgery,
  transfer,
  trees,
)
from upcycle import expert_init as inits
from upcycle.checkpoints import slots

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
      a copy of its MLP's statistics, also where `expert_init` draws
      parameters anew. Adam's bias correction then goes on from
      the source's count also for what is new, whose moments begin at zero: as
      in vmoe, a router's first updates are up to 6.5 times too large.
    step: the step to go on from; None: the source's, which it must record.
    replace: regexes of whole paths of parameters not to be taken from the
      source but made anew, as far as the model has them: for a head of other
      classes ('head/.*', 'pre_logits/.*').
    resize_positions: resize learned position embeddings to the model's grid.
    upcycle: whether layers may be sparse that are dense in the source; False
      refuses them, where a model that is sparse by mistake would be upcycled.
    depth_tile: for a model of more layers than the source: which of the
      source's layers each is made of, statistics of the optimizer too
      (`depth.stretched`, `depth.repeated`); None refuses such a model.
  """

  path: str
  expert_init: surgery.ExpertInit = inits.copy
  optimizer_state: str = 'fresh'
  step: int | None = None
  replace: tuple[str, ...] = ()
  resize_positions: bool = False
  upcycle: bool = True
  depth_tile: depth.Order | None = None

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


def on_mesh(start: Callable[[], TrainState]) -> Callable[[], TrainState]:
  """The same under jit, each device making its part of the state."""
  places = partition.shardings(jax.eval_shape(start))
  return jax.jit(start, out_shardings=places)


def init_params(model: Any, seed: int) -> Any:
  """The model's own initialisation; pure, for jit and eval_shape."""
  inputs = model.example_inputs()
  return model.init(jax.random.key(seed), **inputs)['params']


def param_shapes(model: Any) -> Any:
  """Shapes and dtypes of the model's parameters."""
  return jax.eval_shape(lambda: init_params(model, 0))


def upcycled(
  dense: trees.Tree,
  model: Any,
  seed: int,
  expert_init: surgery.ExpertInit = inits.copy,
  rules: surgery.Rules = surgery.RULES,
  shardings: trees.Tree | None = None,
) -> Any:
  """The model's parameters made from dense ones, lazy where those are lazy.

  Args:
    dense: the source's parameters.
    model: the sparse model.
    seed: of what is made anew.
    expert_init: from a dense MLP's parameter to all experts' ones.
    rules: what each parameter is made of.
    shardings: where the parameters lie; None: on one device.

  Raises:
    ValueError: the checkpoint does not fit the model.
  """
  shapes = param_shapes(model)
  found = surgery.origins(dense, shapes, rules)
  new = [path for path, origin in found.items() if origin.kind == 'fresh']
  places = None
  if shardings is not None:
    flat = trees.flatten(shardings)
    places = {path: flat[path] for path in new}

  @functools.partial(jax.jit, out_shardings=places)
  def fresh():
    # Whatever is not asked for is dropped by the compiler, not computed.
    params = trees.flatten(init_params(model, seed))
    return {path: params[path] for path in new}

  return surgery.upcycle(
    dense,
    shapes,
    key=jax.random.key(seed),
    expert_init=expert_init,
    rules=rules,
    fresh=fresh(),
    shardings=shardings,
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
    ValueError: the checkpoint does not fit the model, has no optimizer state
      to expand, or would be upcycled but may not; all offenders are listed.
  """
  source, shapes = checkpoints.read(init.path), param_shapes(model)
  compatibility.check(source, model.config, shapes)
  with compatibility.explained(source, model.config):
    source, rules, slot_rules = transfer.adapt(
      source, shapes, init.replace, init.resize_positions, init.depth_tile
    )
  if not init.upcycle:
    _check_as_sparse(init, surgery.origins(source.params, shapes, rules))
  fresh_state = jax.eval_shape(optimizer.init, shapes)
  _check_what_is_there(init, source, slots.get(fresh_state))
  expand = init.optimizer_state == 'expand'
  if expand:
    surgery.origins(source.opt_state, slots.get(fresh_state), slot_rules)
  step = source.step if init.step is None else init.step
  state = jax.eval_shape(lambda: from_scratch(model, optimizer, seed))
  places = partition.shardings(state)
  found = surgery.origins(source.params, shapes, rules)
  dense, digests = _on_devices(source.params, found, places.params)
  params = upcycled(dense, model, seed, init.expert_init, rules, places.params)
  opt_state = jax.jit(optimizer.init, out_shardings=places.opt_state)(params)
  if expand:
    opt_state = _expand(source.opt_state, opt_state, slot_rules)
  # Adam's own count is that of its moments: the source's, or 0 if fresh.
  opt_state = optim.with_step(opt_state, step, keep_adam=True)
  made_of = {
    **receipt.of_surgery(
      source, params, init.expert_init, seed, rules, digests
    ),
    'step': step,
    'optimizer_state': init.optimizer_state,
    **depth.receipt(source.params, shapes, init.depth_tile),
    'step_0': receipt.first_losses(
      model, loss, dense, params, batch, param_shapes
    ),
  }
  at = partition.put(np.int32(step), places.step)
  return TrainState(at, params, opt_state), made_of


def _on_devices(
  source: trees.Tree,
  origins: Mapping[str, surgery.Origin],
  shardings: trees.Tree,
) -> tuple[dict[str, Any], dict[str, str]]:
  """A source's arrays where their targets lie, and their checksums.

  Each is read once, and one at a time is held by the host. Where the target is
  one of all experts, the source's axes lie as the target's other ones.
  """
  leaves, places = trees.flatten(source), trees.flatten(shardings)
  arrays, digests = dict(leaves), {}
  for path, origin in origins.items():
    name, place = origin.source, places[path]
    if name is None or name in digests:
      continue
    if origin.kind == 'expert':
      place = partition.without_first(place)
    array = np.asarray(leaves[name])
    digests[name] = surgery.sha256(array)
    arrays[name] = partition.put(array, place)
  return trees.unflatten(arrays), digests


def _check_as_sparse(
  init: InitFrom, origins: Mapping[str, surgery.Origin]
) -> None:
  """Refuses a model with experts where the source is dense."""
  layers = sorted({o.layer for o in origins.values() if o.kind == 'expert'})
  if layers:
    raise ValueError(
      f'{init.path} is dense where the model has experts: {", ".join(layers)}. '
      'Take a dense model (vit.preset.moe = None, or t5.preset.encoder_moe and '
      'decoder_moe = None), or '
      'InitFrom.upcycle = True to upcycle it here.'
    )


def _check_what_is_there(
  init: InitFrom, source: checkpoints.Checkpoint, want: trees.Tree
) -> None:
  """Refuses a source that lacks its step or the optimizer's kind of state."""
  faults = []
  if init.step is None and not source.step:
    faults.append(
      'does not record its step, from which the learning rate goes on: give '
      'InitFrom.step (0 to start the schedule anew)'
    )
  have = slots.kinds(source.opt_state or {})
  if init.optimizer_state == 'expand' and have.isdisjoint(slots.kinds(want)):
    given, wanted = (', '.join(sorted(x)) for x in (have, slots.kinds(want)))
    faults.append(
      f'has no optimizer state to expand: its slots are {given or "none"}, the '
      f"optimizer's {wanted}. Use InitFrom.optimizer_state = 'fresh', or the "
      'optimizer of that run'
    )
  if faults:
    raise ValueError(f'{init.path} ' + '; and it '.join(faults) + '.')


def _expand(source: trees.Tree, state: Any, rules: surgery.Rules) -> Any:
  """The optimizer state with the source's slots, one copy an expert."""
  fresh = slots.get(state)
  places = jax.tree.map(lambda x: x.sharding, fresh)
  found = surgery.origins(source, fresh, rules)
  source, _ = _on_devices(source, found, places)
  new = surgery.upcycle(
    source,
    fresh,
    key=jax.random.key(0),
    rules=rules,
    fresh=fresh,
    shardings=places,
  )
  return slots.replace(state, new)
