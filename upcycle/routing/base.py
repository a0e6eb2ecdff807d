# SPDX-License-Identifier: Apache-2.0
"""What routers return, how many slots it has, and its noise."""

import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from upcycle import partition

ROUNDINGS = {'round': round, 'ceil': math.ceil}


class Routing(NamedTuple):
  """Which token fills each slot, and with what weight it comes back.

  Attributes:
    token: index in [0, S) of the token in a slot; S marks an empty slot.
    weight: combine weight of a slot, 0 if empty.
    aux: scalar losses by name, unweighted.
    metrics: arrays by name. `load` [E] is the share of all filled slots that
      an expert has; `dropped` the share of choices that found no room (Expert
      Choice: of tokens nobody took); `coverage` the share of tokens that some
      expert took; `usage` the share of slots filled
      of those that may be; `confidence` the mean
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


class Ragged(NamedTuple):
  """Which rows each expert gets where none has a capacity.

  A row is a choice of a token; the rows of all groups are R = G * S * K.

  Attributes:
    choice: indices in [0, R) into the choices [G, S, K], one expert's after
      the other's. Those of masked tokens are last, in no expert.
    weight: combine weight of a choice, 0 if its token is masked.
    sizes: rows of an expert.
    aux: as in `Routing`.
    metrics: as in `Routing`; `dropped` is 0 and `usage` 1.
  """

  choice: Int[Array, ' R']
  weight: Float[Array, 'G S K']
  sizes: Int[Array, ' E']
  aux: dict[str, Float[Array, '']]
  metrics: dict[str, Array]

  @property
  def token(self) -> Int[Array, ' R']:
    """The token of a row, in [0, G * S)."""
    return self.choice // self.weight.shape[-1]

  @property
  def row_weight(self) -> Float[Array, ' R']:
    """The combine weight of a row."""
    return self.weight.reshape(-1)[self.choice]

  def masks(
    self, S: int
  ) -> tuple[Bool[Array, 'G S E C'], Float[Array, 'G S E C']]:
    """As of `Routing`: token s in slot s of its experts, C = S."""
    G, E = self.weight.shape[0], self.sizes.shape[0]
    expert = jnp.searchsorted(
      jnp.cumsum(self.sizes), jnp.arange(self.choice.size), side='right'
    )

    def onehot(rows):
      chosen = jnp.zeros((G * S, E), rows.dtype)
      chosen = chosen.at[self.token, expert].set(rows, mode='drop')
      return chosen.reshape(G, S, E, 1) * jnp.eye(S, dtype=rows.dtype)[:, None]

    ones = jnp.ones_like(self.row_weight)
    return onehot(ones).astype(bool), onehot(self.row_weight)


def capacity(
  S: int,
  E: int,
  factor: float,
  *,
  minimum: int = 1,
  multiple_of: int = 1,
  rounding: str = 'round',
) -> int:
  """Slots of an expert in a group of S tokens: factor * S / E, to an integer.

  V-MoE's `compute_capacity`, for K choices a token and its capacity_factor, is
  capacity(S, E, K * capacity_factor, rounding='ceil', multiple_of=4), but for
  the bound of S.

  Args:
    S: tokens in a group.
    E: number of experts.
    factor: capacity factor; `factor` experts process a token on average.
    minimum: lower bound (T5X: 4).
    multiple_of: rounded up to a multiple of this (V-MoE: 4).
    rounding: 'round', half to even (T5X), or 'ceil' (V-MoE).

  Returns:
    An int in [1, S]: an expert can take no token twice.

  Raises:
    ValueError: there is no such number of experts, factor, minimum or
      rounding.
  """
  if E < 1 or factor <= 0 or minimum < 1 or multiple_of < 1:
    raise ValueError(
      'Capacity needs positive numbers, got '
      f'{E} experts, factor {factor}, minimum {minimum}, '
      f'multiple_of {multiple_of}.'
    )
  if rounding not in ROUNDINGS:
    raise ValueError(f"rounding is 'round' or 'ceil', not {rounding!r}.")
  slots = max(ROUNDINGS[rounding](factor * S / E), minimum)
  return min(math.ceil(slots / multiple_of) * multiple_of, S)


def open_slots(C: int, room: Int[Array, ' G'] | None) -> Bool[Array, '#G 1 C']:
  """Which of C slots may be filled, given how many may: the first of them."""
  room = jnp.full((1,), C) if room is None else room
  return jnp.arange(C) < room[:, None, None]


def best(x: Float[Array, 'G _ N'], k: int) -> tuple[Array, Array]:
  """`lax.top_k` of the last axis, each device's own groups on that device.

  XLA gathers all rows for it on CPUs, and on GPUs if there is a model axis.
  """
  shards = partition.size(*partition.TOKENS)
  if shards == 1 or x.shape[0] % shards:
    return tuple(lax.top_k(x, k))
  split = jax.P(partition.TOKENS)
  return partition.local(lambda x: tuple(lax.top_k(x, k)), split)(x)


def add_noise(
  logits: Float[Array, 'G S E'], noise_std: float, key: jax.Array | None
) -> tuple[Float[Array, 'G S E'], float]:
  """Logits plus Gaussian noise, and its standard deviation, noise_std / E.

  V-MoE's scale (Riquelme et al., 2021, appendix A): the more experts, the
  closer their probabilities. The deviation is 0 without a key.

  Raises:
    ValueError: noise_std is negative.
  """
  if not noise_std >= 0:
    raise ValueError(f'noise_std is 0 (no noise) or positive, not {noise_std}.')
  if key is None or noise_std == 0:
    return logits, 0.0
  std = noise_std / logits.shape[-1]
  return logits + std * jax.random.normal(key, logits.shape), std
