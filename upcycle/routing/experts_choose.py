# SPDX-License-Identifier: Apache-2.0
"""Experts choose tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from upcycle.routing.base import Routing, add_noise, best, open_slots
from upcycle.routing.losses import z_loss
from upcycle.routing.weights import renormalized, summary


def expert_choice(
  logits: Float[Array, 'G S E'],
  capacity: int,
  *,
  noise_std: float = 0.0,
  renormalize: bool = False,
  mask: Bool[Array, 'G S'] | None = None,
  room: Int[Array, ' G'] | None = None,
  causal: bool = False,
  key: jax.Array | None = None,
) -> Routing:
  """Each expert takes its `capacity` most probable tokens of every group.

  Zhou et al., "Mixture-of-Experts with Expert Choice Routing" (2022), section
  3.2. There is no load-balance loss: every expert is full.

  Args:
    logits: router logits.
    capacity: slots of an expert in a group, C; more than S count as S.
    noise_std: E times the standard deviation of the noise on the logits that
      choose and weigh; the z loss is that of the logits themselves.
    renormalize: divide a token's weights by their sum.
    mask: False for padding, which takes no slot.
    room: how many slots of an expert may be filled, at most C; None: all.
    causal: whether a token must not see later ones.
    key: for the noise; None: no noise.

  Raises:
    ValueError: `causal`, for an expert's choice looks at all tokens, or a
      negative noise_std.
  """
  if causal:
    raise ValueError(
      'Expert Choice cannot route a causal stack: whether an expert takes a '
      'token depends on later tokens, so a decoder would see its own future. '
      'Use routing.top_k there.'
    )
  mask = jnp.ones(logits.shape[:2], bool) if mask is None else mask
  S = logits.shape[1]
  logits = logits.astype(jnp.float32)
  probs = jax.nn.softmax(add_noise(logits, noise_std, key)[0])
  scores = jnp.where(mask[..., None], probs, -1.0)
  # The last axis is the one that XLA's top-k is fast on.
  scores = jnp.swapaxes(scores, 1, 2)
  score, token = best(scores, min(capacity, S))
  fillable = open_slots(score.shape[-1], room)
  filled = fillable & (score >= 0)
  token = jnp.where(filled, token, S)
  weight = jnp.where(filled, score, 0)
  if renormalize:
    weight = renormalized(weight, token, S)
  aux = {'z': z_loss(logits, mask)}
  metrics = summary(probs, weight, token, mask, fillable)
  metrics['dropped'] = 1 - metrics['coverage']
  return Routing(token, weight, aux, metrics)
