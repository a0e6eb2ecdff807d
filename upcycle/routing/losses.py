# SPDX-License-Identifier: Apache-2.0
"""Auxiliary losses of routers: means over the groups that have real tokens.

Masked tokens count in none.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float


def load_balance_loss(
  probs: Float[Array, 'G S E'],
  chosen: Float[Array, 'G S E'],
  mask: Bool[Array, 'G S'],
) -> Float[Array, '']:
  """E^2 * mean over g, e of f * p (Switch Transformers, equations 4-6).

  f is the share of a group's tokens that chose an expert and p their mean
  probability of it; k if balanced. With first choices alone it is GShard's
  (Lepikhin et al., 2020, algorithm 1).
  """
  E = probs.shape[-1]
  f, p = _mean_of_tokens(chosen, mask), _mean_of_tokens(probs, mask)
  return _mean_of_groups(E * jnp.sum(f * p, axis=1), mask)


def importance_loss(
  probs: Float[Array, 'G S E'], mask: Bool[Array, 'G S']
) -> Float[Array, '']:
  """CV(mean of probs over tokens)^2 (Riquelme et al., 2021, appendix A.2).

  CV is the standard deviation over experts divided by the mean.
  """
  return _mean_of_groups(_squared_cv(_mean_of_tokens(probs, mask)), mask)


def load_loss(
  logits: Float[Array, 'G S E'],
  noisy: Float[Array, 'G S E'],
  chosen: Float[Array, 'G S E'],
  std: float,
  mask: Bool[Array, 'G S'],
) -> Float[Array, '']:
  """CV(mean of p over tokens)^2 (Riquelme et al., 2021, appendix A.2).

  p is the probability that a token chooses an expert if that expert's noise,
  of standard deviation `std`, is drawn again: that it exceeds the least noisy
  logit among those chosen.
  """
  threshold = jnp.min(jnp.where(chosen > 0, noisy, jnp.inf), axis=-1)
  threshold = jnp.where(mask, threshold, 0)[..., None]
  p = norm.cdf((logits - threshold) / std)
  return _mean_of_groups(_squared_cv(_mean_of_tokens(p, mask)), mask)


def z_loss(
  logits: Float[Array, 'G S E'], mask: Bool[Array, 'G S']
) -> Float[Array, '']:
  """mean(logsumexp(logits)^2) over real tokens (ST-MoE, equation 5)."""
  log_z = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
  return jnp.sum(log_z**2 * mask) / jnp.maximum(mask.sum(), 1)


def _mean_of_tokens(
  x: Float[Array, 'G S E'], mask: Bool[Array, 'G S']
) -> Float[Array, 'G E']:
  weight = mask / jnp.maximum(mask.sum(1, keepdims=True), 1)
  # Otherwise a TPU rounds the probabilities to bfloat16.
  return jnp.einsum('gs,gse->ge', weight, x, precision='highest')


def _squared_cv(x: Float[Array, 'G E']) -> Float[Array, ' G']:
  # By the variance: the gradient of a standard deviation of 0 is not finite.
  mean = x.mean(1)
  return x.var(1) / jnp.where(mean > 0, mean, 1) ** 2


def _mean_of_groups(
  loss: Float[Array, ' G'], mask: Bool[Array, 'G S']
) -> Float[Array, '']:
  return loss.sum() / jnp.maximum(mask.any(1).sum(), 1)
