# SPDX-License-Identifier: Apache-2.0
"""Routers: pure functions from router logits to `Routing`.

A router is called as router(logits, capacity, mask=..., causal=...) and says
which token fills which slot of which expert, and with what weight the expert's
output is added back. Axes: G groups, S tokens a group, E experts, C slots of an
expert in a group, K choices of a token.

Capacity has one convention here, T5X's: `capacity_factor * S / E` slots,
whatever K is. V-MoE and Tutel multiply by K: their factor times K is ours.
"""

import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Routing(NamedTuple):
  """Which token fills each slot, and with what weight it comes back.

  Attributes:
    token: index in [0, S) of the token in a slot; S marks an empty slot.
    weight: combine weight of a slot, 0 if empty.
    aux: scalar losses by name, unweighted.
    metrics: arrays by name. `load` [E] is the share of all filled slots that
      an expert has; `dropped` the share of choices that found no room (Expert
      Choice: of tokens nobody took); `coverage` the share of tokens that some
      expert took; `usage` the share of slots filled; `confidence` the mean
      weight of a filled slot; `scale` the mean over tokens of their summed
      weights; `entropy` that of the router's probabilities, in nats.
  """

  token: Int[Array, 'G E C']
  weight: Float[Array, 'G E C']
  aux: dict[str, Float[Array, '']]
  metrics: dict[str, Array]

  def masks(
    self, S: int
  ) -> tuple[Bool[Array, 'G S E C'], Float[Array, 'G S E C']]:
    """The one-hot (dispatch, combine) arrays, for tests and teaching."""
    onehot = jax.nn.one_hot(self.token, S, axis=1)
    return onehot.astype(bool), onehot * self.weight[:, None]


def capacity(
  S: int, E: int, factor: float, *, minimum: int = 1, multiple_of: int = 1
) -> int:
  """Slots of an expert in a group of S tokens: round(factor * S / E), clamped.

  Args:
    S: tokens in a group.
    E: number of experts.
    factor: capacity factor; `factor` experts process a token on average.
    minimum: lower bound (T5X: 4).
    multiple_of: rounded up to a multiple of this (V-MoE: 4).

  Returns:
    An int in [1, S]: an expert can take no token twice.

  Raises:
    ValueError: there is no such number of experts, factor or minimum.
  """
  if E < 1 or factor <= 0 or minimum < 1 or multiple_of < 1:
    raise ValueError(
      'Capacity needs positive numbers, got '
      f'{E} experts, factor {factor}, minimum {minimum}, '
      f'multiple_of {multiple_of}.'
    )
  slots = max(round(factor * S / E), minimum)
  return min(math.ceil(slots / multiple_of) * multiple_of, S)


def expert_choice(
  logits: Float[Array, 'G S E'],
  capacity: int,
  *,
  renormalize: bool = False,
  mask: Bool[Array, 'G S'] | None = None,
  causal: bool = False,
) -> Routing:
  """Each expert takes its `capacity` most probable tokens of every group.

  Zhou et al., "Mixture-of-Experts with Expert Choice Routing" (2022), section
  3.2. There is no load-balance loss: every expert is full.

  Args:
    logits: router logits.
    capacity: slots of an expert in a group, C; more than S count as S.
    renormalize: divide a token's weights by their sum.
    mask: False for padding, which takes no slot.
    causal: whether a token must not see later ones.

  Raises:
    ValueError: `causal`, for an expert's choice looks at all tokens.
  """
  if causal:
    raise ValueError(
      'Expert Choice cannot route a causal stack: whether an expert takes a '
      'token depends on later tokens, so a decoder would see its own future. '
      'Use routing.top_k there.'
    )
  mask = jnp.ones(logits.shape[:2], bool) if mask is None else mask
  S = logits.shape[1]
  probs = jax.nn.softmax(logits.astype(jnp.float32))
  scores = jnp.where(mask[..., None], probs, -1.0)
  # The last axis is the one that XLA's top-k is fast on.
  score, token = lax.top_k(jnp.swapaxes(scores, 1, 2), min(capacity, S))
  token = jnp.where(score >= 0, token, S)
  weight = jnp.maximum(score, 0)
  if renormalize:
    weight = _renormalize(weight, token, S)
  aux = {'z': z_loss(logits, mask)}
  metrics = _metrics(probs, weight, token, mask)
  metrics['dropped'] = 1 - metrics['coverage']
  return Routing(token, weight, aux, metrics)


def top_k(
  logits: Float[Array, 'G S E'],
  capacity: int,
  *,
  k: int = 2,
  batch_priority: bool = False,
  priority: str | None = None,
  renormalize: bool = False,
  mask: Bool[Array, 'G S'] | None = None,
  causal: bool = False,
) -> Routing:
  """Each token goes to its k most probable experts, as long as they have room.

  Shazeer et al. (2017); load-balance loss of Fedus et al., "Switch
  Transformers" (2021), equations 4-6; batch priority of Riquelme et al.,
  "Scaling Vision with Sparse Mixture of Experts" (2021), section 4.1.

  Args:
    logits: router logits.
    capacity: slots of an expert in a group, C; more than S count as S.
    k: experts that a token chooses.
    batch_priority: serve tokens by descending top-1 probability rather than
      from left to right.
    priority: 'choice' places all first choices before all second ones, as
      T5X and V-MoE do, so that a later token's first choice can take the place
      of an earlier token's second; 'token' places token by token, which is
      causal. Default: 'token' if `causal`, else 'choice'.
    renormalize: divide a token's weights by their sum over the experts that
      had room.
    mask: False for padding, which takes no slot and counts in no loss.
    causal: whether a token must not see later ones.

  Raises:
    ValueError: k is not in [1, E], the priority is unknown, or batch priority
      is asked for in a causal stack.
  """
  G, S, E = logits.shape
  priority = priority or ('token' if causal else 'choice')
  _check_top_k(k, E, priority, batch_priority and causal)
  mask = jnp.ones((G, S), bool) if mask is None else mask
  probs = jax.nn.softmax(logits.astype(jnp.float32))
  gates, experts = lax.top_k(probs, k)
  # Padding chooses expert E, which does not exist.
  experts = jnp.where(mask[..., None], experts, E)

  order = jnp.broadcast_to(jnp.arange(S), (G, S))
  if batch_priority:
    order = jnp.argsort(-gates[..., 0], axis=-1)
  served = jnp.take_along_axis(experts, order[..., None], axis=1)
  if priority == 'choice':
    served = jnp.swapaxes(served, 1, 2)
  turn, filled = _fill(served.reshape(G, S * k), E, min(capacity, S))
  place = turn % S if priority == 'choice' else turn // k
  token = jnp.take_along_axis(order, place.reshape(G, -1), axis=1)
  token = jnp.where(filled, token.reshape(filled.shape), S)

  weight = _gather_weights(probs, token)
  if renormalize:
    weight = _renormalize(weight, token, S)
  chosen = jax.nn.one_hot(experts, E).sum(2)
  aux = {
    'load_balance': load_balance_loss(probs, chosen, mask),
    'z': z_loss(logits, mask),
  }
  metrics = _metrics(probs, weight, token, mask)
  metrics['dropped'] = 1 - filled.sum() / jnp.maximum(k * mask.sum(), 1)
  return Routing(token, weight, aux, metrics)


def load_balance_loss(
  probs: Float[Array, 'G S E'],
  chosen: Float[Array, 'G S E'],
  mask: Bool[Array, 'G S'],
) -> Float[Array, '']:
  """E^2 * mean over g, e of f * p (Switch Transformers, equations 4-6).

  f is the share of a group's tokens that chose an expert and p their mean
  probability of it; masked tokens count in neither. k if balanced.
  """
  E = probs.shape[-1]
  weight = mask / jnp.maximum(mask.sum(1, keepdims=True), 1)
  f = jnp.einsum('gs,gse->ge', weight, chosen)
  p = jnp.einsum('gs,gse->ge', weight, probs)
  # Groups that are all padding have nothing to balance.
  real = jnp.maximum(mask.any(1).sum(), 1)
  return E * jnp.sum(f * p) / real


def z_loss(
  logits: Float[Array, 'G S E'], mask: Bool[Array, 'G S']
) -> Float[Array, '']:
  """mean(logsumexp(logits)^2) over real tokens (ST-MoE, equation 5)."""
  log_z = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
  return jnp.sum(log_z**2 * mask) / jnp.maximum(mask.sum(), 1)


def _check_top_k(k: int, E: int, priority: str, leaks: bool) -> None:
  if not 1 <= k <= E:
    raise ValueError(f'top_k cannot choose k={k} of {E} experts.')
  if priority not in ('token', 'choice'):
    raise ValueError(f"priority is 'token' or 'choice', not {priority!r}.")
  if leaks:
    raise ValueError(
      'Batch priority cannot route a causal stack: later tokens would take '
      'the places of earlier ones. Leave batch_priority off in decoders.'
    )


def _fill(
  served: Int[Array, 'G N'], E: int, C: int
) -> tuple[Int[Array, 'G E C'], Bool[Array, 'G E C']]:
  """The turn that gets each slot, first come, first served; whether any did.

  `served` holds the expert asked for at each turn; E asks for none.
  """
  G, N = served.shape
  if (E + 1) * N >= 2**31:
    raise ValueError(f'{E} experts of {N} choices a group: use smaller groups.')
  # One sort of a single integer key lists each expert's turns in order: far
  # cheaper than running counts over a one-hot [N, E].
  keys = jnp.sort(served * N + jnp.arange(N), axis=-1)
  first = jax.vmap(jnp.searchsorted, (0, None))(keys, jnp.arange(E + 1) * N)
  slot = first[:, :-1, None] + jnp.arange(C)
  filled = slot < first[:, 1:, None]
  slot = jnp.minimum(slot, N - 1).reshape(G, E * C)
  turn = jnp.take_along_axis(keys, slot, axis=1) % N
  return turn.reshape(G, E, C), filled


def _gather_weights(
  probs: Float[Array, 'G S E'], token: Int[Array, 'G E C']
) -> Float[Array, 'G E C']:
  by_expert = jnp.swapaxes(probs, 1, 2)
  return jnp.take_along_axis(
    by_expert, token, axis=2, mode='fill', fill_value=0
  )


def _sum_by_token(
  value: Float[Array, 'G E C'], token: Int[Array, 'G E C'], S: int
) -> Float[Array, 'G S']:
  G = token.shape[0]
  zeros = jnp.zeros((G, S), value.dtype)
  add = jax.vmap(lambda z, t, v: z.at[t].add(v, mode='drop'))
  return add(zeros, token.reshape(G, -1), value.reshape(G, -1))


def _renormalize(
  weight: Float[Array, 'G E C'], token: Int[Array, 'G E C'], S: int
) -> Float[Array, 'G E C']:
  total = _sum_by_token(weight, token, S)[:, None]
  total = jnp.take_along_axis(total, token, axis=2, mode='fill', fill_value=1)
  # Weights so small come from experts that nobody wants: dividing by them
  # would overflow, in the gradient first. Such tokens count as unrouted.
  return jnp.where(total > 1e-9, weight / jnp.maximum(total, 1e-9), 0)


def _metrics(
  probs: Float[Array, 'G S E'],
  weight: Float[Array, 'G E C'],
  token: Int[Array, 'G E C'],
  mask: Bool[Array, 'G S'],
) -> dict[str, Array]:
  S = probs.shape[1]
  filled = token < S
  tokens = jnp.maximum(mask.sum(), 1)
  slots = jnp.maximum(filled.sum(), 1)
  took = _sum_by_token(filled.astype(jnp.float32), token, S) > 0
  entropy = -jnp.sum(probs * jnp.log(probs + 1e-30), axis=-1)
  return {
    'load': filled.sum((0, 2)) / slots,
    'coverage': took.sum() / tokens,
    'usage': filled.mean(),
    'confidence': weight.sum() / slots,
    'scale': weight.sum() / tokens,
    'entropy': jnp.sum(entropy * mask) / tokens,
  }
