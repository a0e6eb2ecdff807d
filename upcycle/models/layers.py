# SPDX-License-Identifier: Apache-2.0
"""Layers of the Transformer that the models share.

Parameters are float32, computation is in `dtype`. Axes: B batch, L length,
M d_model, F d_ff, H heads, D head size.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from upcycle import partition

Initializer = Callable[..., Array]

fan_in_normal = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
fan_in_truncated = nn.initializers.variance_scaling(
  1.0, 'fan_in', 'truncated_normal'
)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'gelu': nn.gelu,
  'gelu_exact': lambda x: nn.gelu(x, approximate=False),
  'linear': lambda x: x,
  'relu': nn.relu,
  'silu': nn.silu,
}


class Dense(nn.Module):
  """A linear map of the last axis, with or without a bias.

  Checkpoints may keep either axis of the kernel as several: `stored_in` and
  `stored_out` are the shapes they have there, () if it is one.
  """

  features: int
  use_bias: bool = False
  kernel_init: Initializer = fan_in_truncated
  bias_init: Initializer = nn.initializers.zeros
  dtype: Any = jnp.float32
  stored_in: tuple[int, ...] = ()
  stored_out: tuple[int, ...] = ()

  @nn.compact
  def __call__(self, x: Float[Array, '*B M']) -> Float[Array, '*B F']:
    *batch, width = x.shape
    shape = width, self.features
    stored_out = self.stored_out or (self.features,)
    stored = (*(self.stored_in or (width,)), *stored_out)
    init = lambda key: self.kernel_init(key, shape).reshape(stored)  # noqa: E731
    kernel = self.param('kernel', init).reshape(shape)
    # Two dimensions: XLA's CPU compiler makes the gradient with respect to the
    # kernel about twice as slow for an input of three.
    y = x.astype(self.dtype).reshape(-1, width) @ kernel.astype(self.dtype)
    if self.use_bias:
      bias = self.param('bias', self.bias_init, stored_out)
      y = y + bias.reshape(-1).astype(self.dtype)
    return y.reshape(*batch, self.features)


class RMSNorm(nn.Module):
  """T5's layer norm: no mean, no bias, statistics in float32."""

  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*B M']) -> Float[Array, '*B M']:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(x**2, axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(
      self.dtype
    )


class Place(NamedTuple):
  """Where in a sequence that is being decoded its next token stands.

  Attributes:
    index: of the token, from 0.
    length: of the longest sequence that there is room for.
  """

  index: Int[Array, '']
  length: int


class Attention(nn.Module):
  """Multi-head attention as in T5: no biases and no 1/sqrt(D).

  With a `Place` it is one step of decoding. Keys and values are then kept:
  those of self-attention, which grow by a token a step, in the collection
  `cache`, those of other keys, which are computed once, in `memory`. A call
  without these collections makes them, and what it returns means nothing.
  """

  num_heads: int
  head_dim: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    queries: Float[Array, 'B Q M'],
    keys: Float[Array, 'B _ M'] | None,
    allowed: Bool[Array, 'B Q K'],
    bias: Float[Array, '1 H Q K'] | None = None,
    deterministic: bool = True,
    place: Place | None = None,
  ) -> Float[Array, 'B Q M']:
    inner = self.num_heads * self.head_dim

    def project(name: str, x: Array, init: Initializer) -> Array:
      y = Dense(inner, kernel_init=init, dtype=self.dtype, name=name)(x)
      return y.reshape(*x.shape[:2], self.num_heads, self.head_dim)

    # The missing 1/sqrt(D) is in the initialisation of the queries.
    q = project('query', queries, _scaled(fan_in_normal, self.head_dim**-0.5))
    grows = queries is keys

    def kept(name: str) -> Array:
      new = lambda: project(name, keys, fan_in_normal)  # noqa: E731
      return (
        new() if place is None else self._kept(f'{name}s', new, grows, place)
      )

    k, v = kept('key'), kept('value')
    # Added here, where it fuses: [B, H, Q, K] is never kept for all layers.
    mask = attention_bias(allowed)
    bias = mask if bias is None else over_batch(bias, len(mask)) + mask
    y = attend(q, k, v, bias, dropout(self.dropout_rate, deterministic))
    out = Dense(
      queries.shape[-1], kernel_init=fan_in_normal, dtype=self.dtype, name='out'
    )
    return out(y.reshape(*y.shape[:2], inner))

  def _kept(
    self,
    name: str,
    project: Callable[[], Array],
    grows: bool,
    place: Place,
  ) -> Float[Array, 'B K H D']:
    """Keys or values of all positions."""

    def spread() -> Array:
      return partition.spread(project(), heads=2)

    if not grows:
      return self.variable('memory', name, spread).value
    new, exists = spread(), self.has_variable('cache', name)
    shape = new.shape[0], place.length, *new.shape[2:]
    kept = self.variable('cache', name, jnp.zeros, shape, new.dtype)
    if exists:
      start = 0, place.index, 0, 0
      new = lax.dynamic_update_slice(kept.value, new, start)
      kept.value = partition.spread(new, heads=2)
    return kept.value


def attend(
  q: Float[Array, 'B Q H D'],
  k: Float[Array, 'B K H D'],
  v: Float[Array, 'B K H D'],
  bias: Float[Array, '_ _ Q K'] | None,
  drop: Callable[[Array], Array],
) -> Float[Array, 'B Q H D']:
  """Attention without a scale; its softmax is float32."""
  logits = jnp.einsum('bqhd,bkhd->bhqk', q, k).astype(jnp.float32)
  logits = logits if bias is None else logits + bias
  weights = drop(nn.softmax(logits).astype(q.dtype))
  return jnp.einsum('bhqk,bkhd->bqhd', weights, v)


class RelativePositionBias(nn.Module):
  """T5's relative-position bias, one table for a whole stack."""

  num_heads: int
  num_buckets: int = 32
  max_distance: int = 128
  bidirectional: bool = True

  @nn.compact
  def __call__(
    self, queries: Int[Array, ' Q'], keys: Int[Array, ' K']
  ) -> Float[Array, '1 H Q K']:
    table = self.param(
      'rel_embedding',
      nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform'),
      (self.num_heads, self.num_buckets),
    )
    distance = keys[None, :] - queries[:, None]
    buckets = relative_position_bucket(
      distance, self.bidirectional, self.num_buckets, self.max_distance
    )
    return table[:, buckets][None]


def over_batch(x: Float[Array, '1 H Q K'], B: int) -> Float[Array, '_ H Q K']:
  """The same x for each of B examples.

  As a product with ones, so that its gradient is one: XLA's CPU compiler sums
  over a leading axis about ten times slower than it multiplies.
  """
  return jnp.tensordot(jnp.ones(B, x.dtype), x[0], 0, precision='highest')


def relative_position_bucket(
  distance: Int[Array, 'Q K'],
  bidirectional: bool,
  num_buckets: int,
  max_distance: int,
) -> Int[Array, 'Q K']:
  """The bucket of key position minus query position.

  Half of the buckets of a direction are exact, the others logarithmic up to
  max_distance, where all further distances fall (Raffel et al. 2020, 2.1).
  """
  offset = 0
  if bidirectional:
    num_buckets //= 2
    offset = jnp.where(distance > 0, num_buckets, 0)
    distance = jnp.abs(distance)
  else:
    distance = jnp.maximum(-distance, 0)
  exact = num_buckets // 2
  # The epsilon keeps powers of two on the side where float32 logarithms of
  # the reference implementations put them.
  ratio = distance.astype(jnp.float32) / exact + jnp.finfo(jnp.float32).eps
  scale = (num_buckets - exact) / math.log(max_distance / exact)
  far = exact + (jnp.log(ratio) * scale).astype(jnp.int32)
  return offset + jnp.where(
    distance < exact, distance, jnp.minimum(far, num_buckets - 1)
  )


def dropout(rate: float, deterministic: bool) -> nn.Dropout:
  """T5's dropout: one mask for all positions (the second to last axis)."""
  return nn.Dropout(rate, broadcast_dims=(-2,), deterministic=deterministic)


def attention_bias(
  allowed: Bool[Array, '*B Q K'],
) -> Float[Array, '*B 1 Q K']:
  """0 where attention is allowed and a very negative number elsewhere."""
  return jnp.where(allowed, 0.0, -1e10)[..., None, :, :].astype(jnp.float32)


def _scaled(init: Initializer, factor: float) -> Initializer:
  return lambda *args: factor * init(*args)
