# SPDX-License-Identifier: Apache-2.0
"""Combine weights of slots: taken from probabilities, renormalized, summed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def gather_weights(
  probs: Float[Array, 'G S E'], token: Int[Array, 'G E C']
) -> Float[Array, 'G E C']:
  """Each slot's probability of its token by its expert; 0 if empty."""
  by_expert = jnp.swapaxes(probs, 1, 2)
  return jnp.take_along_axis(
    by_expert, token, axis=2, mode='fill', fill_value=0
  )


def sum_by_token(
  value: Float[Array, 'G E C'], token: Int[Array, 'G E C'], S: int
) -> Float[Array, 'G S']:
  """Sums over the slots that hold a token."""
  G = token.shape[0]
  zeros = jnp.zeros((G, S), value.dtype)
  add = jax.vmap(lambda z, t, v: z.at[t].add(v, mode='drop'))
  return add(zeros, token.reshape(G, -1), value.reshape(G, -1))


def renormalized(
  weight: Float[Array, 'G E C'], token: Int[Array, 'G E C'], S: int
) -> Float[Array, 'G E C']:
  """Weights divided by their sum over the slots of the same token."""
  total = sum_by_token(weight, token, S)[:, None]
  total = jnp.take_along_axis(total, token, axis=2, mode='fill', fill_value=1)
  # Weights so small come from experts that nobody wants: dividing by them
  # would overflow, in the gradient first. Such tokens count as unrouted.
  return jnp.where(total > 1e-9, weight / jnp.maximum(total, 1e-9), 0)


def summary(
  probs: Float[Array, 'G S E'],
  weight: Float[Array, 'G E C'],
  token: Int[Array, 'G E C'],
  mask: Bool[Array, 'G S'],
  fillable: Bool[Array, '#G 1 C'],
) -> dict[str, Array]:
  """The metrics of `Routing` that all routers have; masked tokens in none."""
  filled = token < probs.shape[1]
  took = sum_by_token(filled.astype(jnp.float32), token, probs.shape[1]) > 0
  shared = shares(probs, weight.sum(), filled.sum((0, 2)), took.sum(), mask)
  return shared | {'usage': filled.mean() / jnp.maximum(fillable.mean(), 1e-9)}


def shares(
  probs: Float[Array, 'G S E'],
  weight: Float[Array, ''],
  sizes: Int[Array, ' E'],
  took: Int[Array, ''],
  mask: Bool[Array, 'G S'],
) -> dict[str, Array]:
  """The metrics that need no slots.

  Args:
    probs: the router's.
    weight: sum of all combine weights.
    sizes: how many tokens each expert has.
    took: how many tokens some expert has.
    mask: False for padding.
  """
  tokens = jnp.maximum(mask.sum(), 1)
  slots = jnp.maximum(sizes.sum(), 1)
  entropy = -jnp.sum(probs * jnp.log(probs + 1e-30), axis=-1)
  return {
    'load': sizes / slots,
    'coverage': took / tokens,
    'confidence': weight / slots,
    'scale': weight / tokens,
    'entropy': jnp.sum(entropy * mask) / tokens,
  }
