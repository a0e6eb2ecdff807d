# SPDX-License-Identifier: Apache-2.0
"""Tokens to expert slots and back.

`dispatch` and `combine` move rows by index and cost O(slots * M), whatever the
group size; `dispatch_onehot` and `combine_onehot` say the same as einsums over
one-hot arrays, as T5X and V-MoE do, and are what the tests compare with. Axes:
G groups, S tokens a group, E experts, C slots, M model width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def dispatch(
  x: Float[Array, 'G S M'], token: Int[Array, 'G E C']
) -> Float[Array, 'G E C M']:
  """The row of x in each slot; zeros where `token` is S, an empty slot."""
  take = jax.vmap(lambda x, t: x.at[t].get(mode='fill', fill_value=0))
  return take(x, token)


def combine(
  y: Float[Array, 'G E C M'],
  token: Int[Array, 'G E C'],
  weight: Float[Array, 'G E C'],
  S: int,
) -> Float[Array, 'G S M']:
  """Each token's sum over its slots of weight times output."""
  G, _, _, M = y.shape
  rows = y * weight[..., None].astype(y.dtype)
  add = jax.vmap(lambda out, t, r: out.at[t].add(r, mode='drop'))
  return add(
    jnp.zeros((G, S, M), y.dtype),
    token.reshape(G, -1),
    rows.reshape(G, -1, M),
  )


def dispatch_onehot(
  x: Float[Array, 'G S M'], mask: Bool[Array, 'G S E C']
) -> Float[Array, 'G E C M']:
  """`dispatch` as an einsum with `Routing.masks`' first array."""
  return jnp.einsum('gsm,gsec->gecm', x, mask.astype(x.dtype))


def combine_onehot(
  y: Float[Array, 'G E C M'], weights: Float[Array, 'G S E C']
) -> Float[Array, 'G S M']:
  """`combine` as an einsum with `Routing.masks`' second array."""
  return jnp.einsum('gecm,gsec->gsm', y, weights.astype(y.dtype))
