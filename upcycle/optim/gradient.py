# SPDX-License-Identifier: Apache-2.0
"""AdamW and SGD, and the step that every optimizer's state counts."""

from collections.abc import Sequence
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from upcycle.optim.rules import lookup, map_with_path
from upcycle.optim.schedules import Schedule


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

  A parameter loses learning rate * rate * parameter a step, as in vmoe; the
  rates of its Soft MoE configs are (('head/kernel', 3.0), ('.*/kernel', 0.03)).
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
    paths = jax.tree.leaves(map_with_path(lambda path, _: path, params))
    idle = [r for r, _ in rules if not any(re.fullmatch(r, p) for p in paths)]
    if idle:
      raise ValueError(f'Weight decay rules that match no parameter: {idle}.')
    return optax.EmptyState()

  def update(updates, state, params=None):
    def leaf(path, u, p):
      rate = lookup(path, rules)
      return u + rate * p if rate else u

    return map_with_path(leaf, updates, params), state

  return optax.GradientTransformation(init, update)


def with_step(opt_state: Any, step: int, *, keep_adam: bool = False) -> Any:
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
