# SPDX-License-Identifier: Apache-2.0
"""The MoE layer: one router and E copies of an ordinary MLP.

It stands where a dense MLP stood and is called like one. Losses and metrics
leave by `sow`: the collections `losses` (already weighted) and `metrics`.
"""

from collections.abc import Callable
import functools
import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from upcycle import exchange, partition, ragged, routing
from upcycle.models.mlp import Mlp
from upcycle.models.moe_config import (
  Layers,
  MoeConfig,
  every_n,
  every_other,
  expected_scale,
  experts_per_token,
  group_shape,
  hashable,
  last_half,
  last_n,
  last_n_odd,
  sparse_layers,
)

__all__ = [
  'Layers',
  'MoeConfig',
  'MoeLayer',
  'every_n',
  'every_other',
  'expected_scale',
  'experts_per_token',
  'group_shape',
  'hashable',
  'last_half',
  'last_n',
  'last_n_odd',
  'sparse_layers',
]


class RouterWeights(nn.Module):
  """The kernel [M, E], below the names that checkpoints give it."""

  names: tuple[str, ...]
  num_experts: int
  std: float

  @nn.compact
  def __call__(self, x: Float[Array, 'G S M']) -> Float[Array, 'G S E']:
    name, *inner = self.names
    if inner:
      return RouterWeights(tuple(inner), self.num_experts, self.std, name=name)(
        x
      )
    # float32 always, on TPU too, where the default precision is bfloat16's:
    # rounded probabilities change which tokens are chosen.
    return nn.Dense(
      self.num_experts,
      use_bias=False,
      dtype=jnp.float32,
      precision='highest',
      kernel_init=nn.initializers.normal(self.std),
      name=name,
    )(x)


class MoeLayer(nn.Module):
  """Routes tokens to experts and sums what comes back.

  Attributes:
    config: what is sparse about it.
    expert: makes the expert, an ordinary MLP, from a dropout rate and a name.
    causal: whether a token must not depend on later ones.
    router_names: the router's module names from here to the kernel.
    expert_name: the experts' module name.
  """

  config: MoeConfig
  expert: Callable[..., Mlp]
  causal: bool = False
  router_names: tuple[str, ...] = ('router', 'router_weights', 'w')
  expert_name: str = 'expert'

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B L M'],
    mask: Bool[Array, 'B L'] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, 'B L M']:
    B, L, M = x.shape
    shards = partition.size(*partition.TOKENS)
    G, S = group_shape(B, L, self.config, shards)
    parts = math.gcd(B, math.lcm(shards, self.config.group_multiple))
    mask = None if not self.config.ignore_padding else mask
    x, mask = _group(x, mask, parts, G, S)
    logits = RouterWeights(
      self.router_names[1:],
      self.config.num_experts,
      self.config.router_std,
      name=self.router_names[0],
    )(x)
    routed = self.route(logits, mask, deterministic)
    y = self._experts(x, routed, deterministic)
    tokens = B * L // parts
    return y.reshape(parts, -1, M)[:, :tokens].reshape(B, L, M)

  def route(
    self,
    logits: Float[Array, 'G S E'],
    mask: Bool[Array, 'G S'] | None,
    deterministic: bool,
  ) -> routing.Routing | routing.Ragged:
    """Who gets which token; its losses and metrics are sown."""
    config = self.config
    slots = config.capacity(logits.shape[1], deterministic)
    counted = mask is not None and not self.causal
    room = config.room(mask, deterministic) if counted else None
    training = not deterministic and self.has_rng('dropout')
    key = self.make_rng('dropout') if training else None
    routed = config.router(
      logits, slots, mask=mask, room=room, causal=self.causal, key=key
    )
    for name, weight in config.aux_weights:
      if name in routed.aux:  # the loss of noise is not, in evaluation
        self.sow('losses', name, weight * routed.aux[name])
    # The experts' load is a metric and V-MoE's name of a loss.
    for name, value in (routed.aux | routed.metrics).items():
      self.sow('metrics', name, value)
    return routed

  def _experts(
    self,
    x: Float[Array, 'G S M'],
    routed: routing.Routing | routing.Ragged,
    deterministic: bool,
  ) -> Float[Array, 'G S M']:
    E = self.config.num_experts
    expert = self.expert(self.config.expert_dropout, name=self.expert_name)
    if self.is_initializing():
      stacked = nn.vmap(
        lambda expert, x: expert(x),
        variable_axes={'params': 0},
        split_rngs={'params': True},
      )
      stacked(expert, jnp.zeros((E, 1, x.shape[-1]), x.dtype))
    if isinstance(routed, routing.Ragged):
      if partition.size(*partition.TOKENS) > 1:
        raise ValueError(
          'routing.dropless routes all tokens together, so several devices '
          'cannot share them: use routing.top_k there.'
        )
      apply, rows = ragged.apply, None
      places = routed.token, routed.row_weight, routed.sizes
    else:
      apply = functools.partial(exchange.apply, self.config.exchange)
      rows = routed.token.size // E
      places = routed.token, routed.weight
    keep = None
    if self.config.expert_dropout and not deterministic:
      keep = expert.keep(self.make_rng('dropout'), E, rows)
    return apply(
      expert.activate(),
      expert.parameters(expert.variables['params']),
      x.astype(expert.dtype),
      *places,
      keep,
    )


def _group(
  x: Float[Array, 'B L M'],
  mask: Bool[Array, 'B L'] | None,
  parts: int,
  G: int,
  S: int,
) -> tuple[Float[Array, 'G S M'], Bool[Array, 'G S'] | None]:
  """Groups of S tokens in order; masked tokens fill up the last of each part.

  A part is what a device has, or several of them: groups stay on it.
  """
  tokens = x.shape[0] * x.shape[1] // parts
  extra = G * S // parts - tokens
  if extra and mask is None:
    mask = jnp.ones(x.shape[:2], bool)
  x = x.reshape(parts, tokens, -1)
  x = partition.spread(jnp.pad(x, ((0, 0), (0, extra), (0, 0))))
  x = partition.spread(x.reshape(G, S, -1))
  if mask is not None:
    mask = jnp.pad(mask.reshape(parts, tokens), ((0, 0), (0, extra)))
    mask = mask.reshape(G, S)
  return x, mask
