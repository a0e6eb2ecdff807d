# SPDX-License-Identifier: Apache-2.0
"""Tokens choose experts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from upcycle.routing import losses
from upcycle.routing.base import Ragged, Routing, add_noise, best, open_slots
from upcycle.routing.weights import (
  gather_weights,
  renormalized,
  shares,
  summary,
)


def top_k(
  logits: Float[Array, 'G S E'],
  capacity: int,
  *,
  k: int = 2,
  batch_priority: bool = False,
  priority: str | None = None,
  noise_std: float = 0.0,
  renormalize: bool = False,
  mask: Bool[Array, 'G S'] | None = None,
  room: Int[Array, ' G'] | None = None,
  causal: bool = False,
  key: jax.Array | None = None,
) -> Routing:
  """Each token goes to its k most probable experts, as long as they have room.

  Shazeer et al. (2017); load-balance loss of Fedus et al., "Switch
  Transformers" (2021), equations 4-6; batch priority, noise, importance and
  load loss of Riquelme et al., "Scaling Vision with Sparse Mixture of Experts"
  (2021), section 4.1 and appendix A.

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
    noise_std: E times the standard deviation of the noise on the logits that
      choose and weigh; the z and importance losses are those of the logits
      themselves, and only with noise is there a load loss.
    renormalize: divide a token's weights by their sum over the experts that
      had room.
    mask: False for padding, which takes no slot and counts in no loss.
    room: how many slots of an expert may be filled, at most C; None: all.
    causal: whether a token must not see later ones.
    key: for the noise; None: no noise.

  Raises:
    ValueError: k is not in [1, E], the priority is unknown, batch priority is
      asked for in a causal stack, or noise_std is negative.
  """
  G, S, E = logits.shape
  priority = priority or ('token' if causal else 'choice')
  _check_priority(priority, batch_priority and causal)
  mask = jnp.ones((G, S), bool) if mask is None else mask
  probs, gates, experts, aux = _choose(logits, k, noise_std, mask, key)

  order = jnp.broadcast_to(jnp.arange(S), (G, S))
  if batch_priority:
    order = jnp.argsort(-gates[..., 0], axis=-1)
  served = jnp.take_along_axis(experts, order[..., None], axis=1)
  if priority == 'choice':
    served = jnp.swapaxes(served, 1, 2)
  turn, filled = _fill(served.reshape(G, S * k), E, min(capacity, S))
  fillable = open_slots(filled.shape[-1], room)
  filled &= fillable
  place = turn % S if priority == 'choice' else turn // k
  token = jnp.take_along_axis(order, place.reshape(G, -1), axis=1)
  token = jnp.where(filled, token.reshape(filled.shape), S)

  weight = gather_weights(probs, token)
  if renormalize:
    weight = renormalized(weight, token, S)
  metrics = summary(probs, weight, token, mask, fillable)
  metrics['dropped'] = 1 - filled.sum() / jnp.maximum(k * mask.sum(), 1)
  return Routing(token, weight, aux, metrics)


def dropless(
  logits: Float[Array, 'G S E'],
  capacity: int,
  *,
  k: int = 2,
  noise_std: float = 0.0,
  renormalize: bool = False,
  mask: Bool[Array, 'G S'] | None = None,
  room: Int[Array, ' G'] | None = None,
  causal: bool = False,
  key: jax.Array | None = None,
) -> Ragged:
  """Each token goes to its k most probable experts, which all have room.

  Gale et al., "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts"
  (2022), section 3; the idea of Tutel's capacity factor 0, which takes the
  largest expert's number of tokens as capacity. What a token gets depends on
  no other one. Losses and noise are those of `top_k`.

  Args:
    logits: router logits.
    capacity: not used: experts have as many rows as tokens choose them.
    k: experts that a token chooses.
    noise_std: E times the standard deviation of the noise, see `top_k`.
    renormalize: divide a token's weights by their sum.
    mask: False for padding, which no expert gets and which counts in no loss.
    room: not used, as capacity.
    causal: whether a token must not see later ones; it never does.
    key: for the noise; None: no noise.

  Raises:
    ValueError: k is not in [1, E], or noise_std is negative.
  """
  del capacity, room, causal
  mask = jnp.ones(logits.shape[:2], bool) if mask is None else mask
  probs, gates, experts, aux = _choose(logits, k, noise_std, mask, key)
  if renormalize:
    gates /= gates.sum(-1, keepdims=True)
  weight = jnp.where(mask[..., None], gates, 0)
  choice, first = _by_expert(experts.reshape(1, -1), logits.shape[-1])
  sizes = jnp.diff(first[0])
  metrics = shares(probs, weight.sum(), sizes, mask.sum(), mask)
  metrics |= {'usage': jnp.ones(()), 'dropped': jnp.zeros(())}
  return Ragged(choice[0], weight, sizes, aux, metrics)


def _check_priority(priority: str, leaks: bool) -> None:
  if priority not in ('token', 'choice'):
    raise ValueError(f"priority is 'token' or 'choice', not {priority!r}.")
  if leaks:
    raise ValueError(
      'Batch priority cannot route a causal stack: later tokens would take '
      'the places of earlier ones. Leave batch_priority off in decoders.'
    )


def _choose(
  logits: Float[Array, 'G S E'],
  k: int,
  noise_std: float,
  mask: Bool[Array, 'G S'],
  key: jax.Array | None,
) -> tuple[
  Float[Array, 'G S E'],
  Float[Array, 'G S K'],
  Int[Array, 'G S K'],
  dict[str, Float[Array, '']],
]:
  """(probabilities, those of the best k experts, these experts, losses).

  Padding chooses expert E, which does not exist.
  """
  E = logits.shape[-1]
  if not 1 <= k <= E:
    raise ValueError(f'Tokens cannot choose k={k} of {E} experts.')
  logits = logits.astype(jnp.float32)
  noisy, std = add_noise(logits, noise_std, key)
  probs = jax.nn.softmax(noisy)
  gates, experts = best(probs, k)
  experts = jnp.where(mask[..., None], experts, E)
  return (
    probs,
    gates,
    experts,
    _losses(logits, noisy, std, probs, experts, mask),
  )


def _fill(
  served: Int[Array, 'G N'], E: int, C: int
) -> tuple[Int[Array, 'G E C'], Bool[Array, 'G E C']]:
  """The turn that gets each slot, first come, first served; whether any did.

  `served` holds the expert asked for at each turn; E asks for none.
  """
  G, N = served.shape
  turns, first = _by_expert(served, E)
  slot = first[:, :-1, None] + jnp.arange(C)
  filled = slot < first[:, 1:, None]
  slot = jnp.minimum(slot, N - 1).reshape(G, E * C)
  turn = jnp.take_along_axis(turns, slot, axis=1)
  return turn.reshape(G, E, C), filled


def _by_expert(
  served: Int[Array, 'G N'], E: int
) -> tuple[Int[Array, 'G N'], Int[Array, 'G {E}+1']]:
  """The turns, one expert's after the other's, and where each's begin."""
  N = served.shape[1]
  if (E + 1) * N >= 2**31:
    raise ValueError(
      f'{E} experts of {N} choices routed together: use smaller groups or, '
      'with routing.dropless, which routes all groups together, fewer tokens.'
    )
  # One sort of a single integer key lists each expert's turns in order: far
  # cheaper than running counts over a one-hot [N, E].
  keys = jnp.sort(served * N + jnp.arange(N), axis=-1)
  first = jax.vmap(jnp.searchsorted, (0, None))(keys, jnp.arange(E + 1) * N)
  return keys % N, first


def _losses(
  logits: Float[Array, 'G S E'],
  noisy: Float[Array, 'G S E'],
  std: float,
  probs: Float[Array, 'G S E'],
  experts: Int[Array, 'G S K'],
  mask: Bool[Array, 'G S'],
) -> dict[str, Float[Array, '']]:
  """All losses of token choice, unweighted; masked tokens chose no expert."""
  choices = jax.nn.one_hot(experts, logits.shape[-1])
  # The loss is linear in what is chosen, so the first choices' is on the way.
  by_choice = jax.vmap(losses.load_balance_loss, (None, 2, None))
  balance = by_choice(probs, choices, mask)
  aux = {
    'load_balance': balance.sum(),
    'gshard': balance[0],
    'importance': losses.importance_loss(jax.nn.softmax(logits), mask),
    'z': losses.z_loss(logits, mask),
  }
  if std:
    aux['load'] = losses.load_loss(logits, noisy, choices.sum(2), std, mask)
  return aux
