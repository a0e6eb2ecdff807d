# SPDX-License-Identifier: Apache-2.0
"""The MoE layer: one router and E copies of an ordinary MLP.

It stands where a dense MLP stood and is called like one. Losses and metrics
leave by `sow`: the collections `losses` (already weighted) and `metrics`.
"""

from collections.abc import Callable
import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from upcycle import dispatch, routing

Router = Callable[..., routing.Routing]
Layers = tuple[int, ...] | Callable[[int], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class MoeConfig:
  """What makes an MLP sparse.

  Attributes:
    num_experts: E, for all sparse layers or one number a layer.
    router: a function of `upcycle.routing`, or one with its signature.
    capacity_factor: experts that process a token on average, see
      `routing.capacity`.
    eval_capacity_factor: the same without dropout; None: capacity_factor.
    min_capacity: least slots of an expert in a group.
    capacity_multiple_of: slots are rounded up to a multiple of this.
    group_size: most tokens routed together. The number of groups is the least
      that keeps to it, and the tokens are spread evenly over them.
    group_multiple: the number of groups is a multiple of this: the number of
      devices that share the tokens.
    ignore_padding: padding takes no slot and counts in no loss.
    expert_dropout: dropout rate of the experts' hidden activations.
    aux_weights: (name, weight) of the router's losses to train on; the mean
      over the layers that have the loss is taken.
    router_std: standard deviation of a fresh router's normal kernel.
  """

  num_experts: int | tuple[int, ...] = 32
  router: Router = routing.expert_choice
  capacity_factor: float = 2.0
  eval_capacity_factor: float | None = None
  min_capacity: int = 1
  capacity_multiple_of: int = 1
  group_size: int = 4096
  group_multiple: int = 1
  ignore_padding: bool = True
  expert_dropout: float = 0.0
  aux_weights: tuple[tuple[str, float], ...] = ()
  router_std: float = 0.02

  def __post_init__(self):
    counts = self.num_experts
    counts = counts if isinstance(counts, tuple) else (counts,)
    if not all(isinstance(n, int) for n in counts):
      raise ValueError(
        f'num_experts is a number or a tuple of them, not {self.num_experts!r}.'
      )
    numbers = (*counts, self.group_size, self.group_multiple)
    if min(numbers) < 1 or not 0 <= self.expert_dropout < 1:
      raise ValueError(
        'MoeConfig needs at least one expert, group size and group multiple '
        f'of 1 and an expert dropout in [0, 1), got {self}.'
      )
    for factor in (self.capacity_factor, self.eval_capacity_factor):
      if factor is not None and factor <= 0:
        raise ValueError(f'A capacity factor of {factor} gives no slots.')

  def capacity(self, S: int, deterministic: bool = False) -> int:
    """Slots of an expert in a group of S tokens."""
    factor = self.capacity_factor
    if deterministic and self.eval_capacity_factor is not None:
      factor = self.eval_capacity_factor
    return routing.capacity(
      S,
      self.num_experts,
      factor,
      minimum=self.min_capacity,
      multiple_of=self.capacity_multiple_of,
    )


def every_other(num_layers: int) -> tuple[int, ...]:
  """Every second layer, from the second on: the paper's choice for T5."""
  return tuple(range(1, num_layers, 2))


def last_n(num_layers: int, n: int) -> tuple[int, ...]:
  """The last n layers: the paper's choice in its ablations of ViT."""
  return tuple(range(num_layers - n, num_layers))


def sparse_layers(
  config: MoeConfig | None, layers: Layers, num_layers: int, *, causal: bool
) -> dict[int, MoeConfig]:
  """The sparse layers of a stack, after checking that they can be.

  Args:
    config: the stack's MoE config; None: the stack is dense.
    layers: 0-based indices, or a function from the number of layers to them.
    num_layers: layers of the stack.
    causal: whether the stack is a decoder.

  Returns:
    Each sparse layer's config, with one number of experts, by index.

  Raises:
    ValueError: indices that are not layers, a count of expert numbers other
      than that of sparse layers, or a router that cannot route this stack.
  """
  if config is None:
    return {}
  chosen = tuple(layers(num_layers) if callable(layers) else layers)
  outside = [i for i in chosen if i not in range(num_layers)]
  if outside or len(set(chosen)) < len(chosen):
    raise ValueError(
      f'MoE layers {chosen} are not distinct layers of 0..{num_layers - 1}.'
    )
  counts = config.num_experts
  counts = (counts,) * len(chosen) if isinstance(counts, int) else counts
  if len(counts) != len(chosen):
    raise ValueError(
      f'num_experts {counts} names {len(counts)} layers, but {len(chosen)} '
      f'are sparse: {chosen}.'
    )
  for E in set(counts):
    logits = jax.ShapeDtypeStruct((1, 2, E), jnp.float32)
    jax.eval_shape(lambda x: config.router(x, 1, causal=causal), logits)
  return {
    i: dataclasses.replace(config, num_experts=E)
    for i, E in zip(chosen, counts, strict=True)
  }


@functools.cache
def expected_scale(
  config: MoeConfig, width: int, *, causal: bool = False, tokens: int = 4096
) -> float:
  """Mean over tokens of summed combine weights that a fresh router gives.

  For inputs of unit RMS, by simulation: logits are then normal with standard
  deviation router_std * sqrt(width). An upcycled layer starts as its dense MLP
  times this, which is the initial drop in quality (Sparse Upcycling, B.8).
  """
  E, S = config.num_experts, min(tokens, config.group_size)
  std = config.router_std * width**0.5
  logits = std * jax.random.normal(jax.random.key(0), (1, S, E))
  routed = config.router(logits, config.capacity(S), causal=causal)
  return float(routed.metrics['scale'])


def group_shape(tokens: int, config: MoeConfig) -> tuple[int, int]:
  """(G, S) of the least padding: G groups of S <= group_size tokens."""
  groups = math.ceil(tokens / config.group_size)
  groups = math.ceil(groups / config.group_multiple) * config.group_multiple
  return groups, math.ceil(tokens / groups)


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
  expert: Callable[..., nn.Module]
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
    G, S = group_shape(B * L, self.config)
    mask = None if not self.config.ignore_padding else mask
    x, mask = _group(x, mask, G, S)
    logits = RouterWeights(
      self.router_names[1:],
      self.config.num_experts,
      self.config.router_std,
      name=self.router_names[0],
    )(x)
    routed = self._route(logits, mask, deterministic)
    y = dispatch.dispatch(x, routed.token)
    y = self._experts(y, deterministic)
    y = dispatch.combine(y, routed.token, routed.weight, S)
    return y.reshape(G * S, M)[: B * L].reshape(B, L, M)

  def _route(
    self,
    logits: Float[Array, 'G S E'],
    mask: Bool[Array, 'G S'] | None,
    deterministic: bool,
  ) -> routing.Routing:
    config = self.config
    slots = config.capacity(logits.shape[1], deterministic)
    routed = config.router(logits, slots, mask=mask, causal=self.causal)
    for name, weight in config.aux_weights:
      if name not in routed.aux:
        raise ValueError(
          f'The router gives the losses {sorted(routed.aux)}, not {name!r}: '
          'take it out of aux_weights.'
        )
      self.sow('losses', name, weight * routed.aux[name])
    for name, value in (*routed.metrics.items(), *routed.aux.items()):
      self.sow('metrics', name, value)
    return routed

  def _experts(
    self, slots: Float[Array, 'G E C M'], deterministic: bool
  ) -> Float[Array, 'G E C M']:
    G, E, C, M = slots.shape
    experts = nn.vmap(
      lambda expert, x: expert(x, None, deterministic),
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
    )
    expert = self.expert(self.config.expert_dropout, name=self.expert_name)
    y = experts(expert, jnp.swapaxes(slots, 0, 1).reshape(E, G * C, M))
    return jnp.swapaxes(y.reshape(E, G, C, M), 0, 1)


def _group(
  x: Float[Array, 'B L M'], mask: Bool[Array, 'B L'] | None, G: int, S: int
) -> tuple[Float[Array, 'G S M'], Bool[Array, 'G S'] | None]:
  """Groups of S tokens in order; masked tokens fill up the last one."""
  tokens = x.shape[0] * x.shape[1]
  extra = G * S - tokens
  if extra and mask is None:
    mask = jnp.ones(x.shape[:2], bool)
  x = jnp.pad(x.reshape(tokens, -1), ((0, extra), (0, 0)))
  if mask is not None:
    mask = jnp.pad(mask.reshape(tokens), (0, extra)).reshape(G, S)
  return x.reshape(G, S, -1), mask
