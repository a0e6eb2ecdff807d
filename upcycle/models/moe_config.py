# SPDX-License-Identifier: Apache-2.0
"""What makes an MLP sparse, and which layers of a stack are."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from upcycle import exchange, routing

Router = Callable[..., routing.Routing | routing.Ragged]
Layers = Sequence[int] | Callable[[int], tuple[int, ...]]


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
    capacity_rounding: how a fraction of a slot counts, see `routing.capacity`.
    group_size: most tokens routed together. The number of groups is the least
      that keeps to it, and the tokens are spread evenly over them. None: every
      row of a batch, a sequence or an image, is a group.
    group_multiple: the number of groups is a multiple of this, and of the
      number of devices that share the tokens. With a multiple of all numbers
      of devices a model is the same on all of them.
    exchange: how tokens meet experts on other devices, of `upcycle.exchange`.
    ignore_padding: padding takes no slot, gives none (capacity is that of a
      group's real tokens, but in causal stacks, where it would tell of later
      ones) and counts in no loss.
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
  capacity_rounding: str = 'round'
  group_size: int | None = 4096
  group_multiple: int = 1
  exchange: Callable[..., jax.Array] = exchange.flat
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
    size = 1 if self.group_size is None else self.group_size
    numbers = (*counts, size, self.group_multiple)
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
      rounding=self.capacity_rounding,
    )

  def room(
    self, mask: Bool[Array, 'G S'], deterministic: bool = False
  ) -> Int[Array, ' G']:
    """Slots of an expert in groups of which only some tokens are real."""
    sizes = range(mask.shape[1] + 1)
    by_size = [self.capacity(n, deterministic) for n in sizes]
    return jnp.asarray(by_size)[mask.sum(axis=1)]


def every_n(num_layers: int, n: int) -> tuple[int, ...]:
  """Every n-th layer, from the n-th on."""
  return tuple(range(n - 1, num_layers, n))


def every_other(num_layers: int) -> tuple[int, ...]:
  """Every second layer, from the second on: the paper's choice for T5."""
  return every_n(num_layers, 2)


def last_n(num_layers: int, n: int) -> tuple[int, ...]:
  """The last n layers: the paper's choice in its ablations of ViT."""
  return tuple(range(num_layers - n, num_layers))


def last_half(num_layers: int) -> tuple[int, ...]:
  """The last half of the layers: the paper's choice for ViT."""
  return last_n(num_layers, num_layers // 2)


def last_n_odd(num_layers: int, n: int) -> tuple[int, ...]:
  """The last n odd layers: V-MoE's last-n (Riquelme et al., 2021, 4.1)."""
  odd = range(1, num_layers, 2)
  return tuple(odd[max(len(odd) - n, 0) :])


def hashable(layers: Layers) -> Layers:
  """As jit wants the attributes of a model: tuples for lists."""
  return layers if callable(layers) else tuple(layers)


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
      than that of sparse layers, a router that cannot route this stack, or
      auxiliary losses that it does not have.
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
    _check_router(config, E, causal)
  return {
    i: dataclasses.replace(config, num_experts=E)
    for i, E in zip(chosen, counts, strict=True)
  }


def _check_router(config: MoeConfig, E: int, causal: bool) -> None:
  """Routes shapes, with noise, and looks for the losses to train on."""

  def route(logits):
    key = jax.random.key(0)
    return config.router(logits, 1, causal=causal, key=key).aux

  aux = jax.eval_shape(route, jax.ShapeDtypeStruct((1, 2, E), jnp.float32))
  unknown = sorted({name for name, _ in config.aux_weights} - aux.keys())
  if unknown:
    raise ValueError(
      f'The router gives the losses {sorted(aux)}, not {unknown}: take them '
      'out of aux_weights.'
    )


@functools.cache
def expected_scale(
  config: MoeConfig, width: int, *, causal: bool = False, row: int = 4096
) -> float:
  """Mean over tokens of summed combine weights that a fresh router gives.

  For inputs of unit RMS, by simulation: logits are then normal with standard
  deviation router_std * sqrt(width). An upcycled layer starts as its dense MLP
  times this, which is the initial drop in quality (Sparse Upcycling, B.8).
  `row` is the number of tokens in a row, the group if group_size is None.
  """
  E, S = config.num_experts, min(config.group_size or row, 4096)
  std = config.router_std * width**0.5
  logits = std * jax.random.normal(jax.random.key(0), (1, S, E))
  routed = config.router(logits, config.capacity(S), causal=causal)
  return float(routed.metrics['scale'])


@functools.cache
def experts_per_token(config: MoeConfig, *, causal: bool = False) -> float:
  """Experts that a token goes through, on average and at most.

  Where tokens choose: K, or the capacity factor if that is less. Where experts
  do: the capacity factor. Without a capacity: K.
  """

  def route():
    # Alone in its group, a token finds room with all that may have it.
    logits = jnp.zeros((1, 1, config.num_experts))
    return config.router(logits, 1, causal=causal)

  # Compiled, for the many small programs of a router take seconds to.
  takers = float(jax.jit(lambda: route().masks(1)[0].sum())())
  limited = isinstance(jax.eval_shape(route), routing.Routing)
  return min(takers, config.capacity_factor) if limited else takers


def group_shape(
  B: int, L: int, config: MoeConfig, shards: int = 1
) -> tuple[int, int]:
  """(G, S) of the least padding: G groups of S tokens for B rows of L.

  Args:
    B: rows of the batch.
    L: tokens of a row.
    config: of the layer.
    shards: devices that share the tokens; G is a multiple.
  """
  multiple = math.lcm(config.group_multiple, shards)
  round_up = lambda n: math.ceil(n / multiple) * multiple  # noqa: E731
  if config.group_size is None:
    return (B if shards == 1 else round_up(B)), L
  groups = round_up(math.ceil(B * L / config.group_size))
  return groups, math.ceil(B * L / groups)
