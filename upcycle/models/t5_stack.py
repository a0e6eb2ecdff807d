# SPDX-License-Identifier: Apache-2.0
"""The encoder and the decoder of a T5, and their layers."""

from collections.abc import Callable
import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from upcycle import partition
from upcycle.models import layers, moe
from upcycle.models.mlp import Mlp
from upcycle.models.t5_config import T5Config


class Layer(nn.Module):
  """A pre-norm encoder layer, or decoder layer if `causal`."""

  config: T5Config
  mlp: Callable[..., nn.Module]
  causal: bool

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B L M'],
    valid: Bool[Array, 'B L'],
    real: Bool[Array, 'B L'],
    allowed: Bool[Array, 'B L _'],
    bias: Float[Array, '1 H L _'],
    encoded: Float[Array, 'B K M'] | None,
    cross_allowed: Bool[Array, 'B L K'] | None,
    deterministic: bool,
    place: layers.Place | None = None,
  ) -> Float[Array, 'B L M']:
    """Self-attention, cross-attention in the decoder, MLP.

    Args:
      x: the residual stream.
      valid: positions whose normed inputs are kept, others become 0.
      real: positions that an MoE layer routes.
      allowed: which positions attend to which.
      bias: of their relative positions.
      encoded: the encoder's output; None where the cache has its keys.
      cross_allowed: which positions attend to which of the encoder's.
      deterministic: no dropout.
      place: where x stands if this is a step of decoding.
    """
    config = self.config

    def norm(name: str, x: Array) -> Array:
      x = layers.RMSNorm(dtype=config.dtype, name=name)(x)
      return x * valid[..., None].astype(x.dtype)

    def attend(name: str, q: Array, k: Array | None, *mask_and_bias) -> Array:
      attention = layers.Attention(
        config.num_heads,
        config.head_dim,
        config.dropout_rate,
        config.dtype,
        name=name,
      )
      return attention(
        q, k, *mask_and_bias, deterministic=deterministic, place=place
      )

    drop = layers.dropout(config.dropout_rate, deterministic)
    x = partition.spread(x)
    kind = 'self_attention' if self.causal else 'attention'
    y = norm(f'pre_{kind}_layer_norm', x)
    x = x + drop(attend(kind, y, y, allowed, bias))
    if self.causal:
      y = norm('pre_cross_attention_layer_norm', x)
      y = attend('encoder_decoder_attention', y, encoded, cross_allowed)
      x = x + drop(y)
    y = norm('pre_mlp_layer_norm', x)
    return x + drop(self.mlp(name='mlp')(y, real, deterministic))


class Stack(nn.Module):
  """The encoder, or the decoder if `causal`, which ends in logits if untied."""

  config: T5Config
  num_layers: int
  sparse: dict[int, moe.MoeConfig]
  causal: bool

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B L M'],
    valid: Bool[Array, 'B L'],
    real: Bool[Array, 'B L'],
    allowed: Bool[Array, 'B L _'],
    encoded: Float[Array, 'B K M'] | None = None,
    cross_allowed: Bool[Array, 'B L K'] | None = None,
    deterministic: bool = True,
    place: layers.Place | None = None,
  ) -> Float[Array, 'B L _']:
    config = self.config
    first = 0 if place is None else place.index
    drop = layers.dropout(config.dropout_rate, deterministic)
    bias = layers.RelativePositionBias(
      config.num_heads, bidirectional=not self.causal, name='relpos_bias'
    )(first + jnp.arange(x.shape[1]), jnp.arange(allowed.shape[2]))
    remat = config.remat and place is None
    layer = nn.remat(Layer, static_argnums=(8,)) if remat else Layer
    x = drop(x)
    for i in range(self.num_layers):
      x = layer(config, self._mlp(i), self.causal, name=f'layers_{i}')(
        *(x, valid, real, allowed, bias, encoded, cross_allowed),
        *(deterministic, place),
      )
    name = 'decoder_norm' if self.causal else 'encoder_norm'
    x = drop(layers.RMSNorm(dtype=config.dtype, name=name)(x))
    x = x * valid[..., None].astype(x.dtype)
    if self.causal and not config.logits_via_embedding:
      # Logits are float32, as in T5X: the loss is sensitive to their rounding.
      x = layers.Dense(config.vocab_size, name='logits_dense')(x)
    return x

  def _mlp(self, i: int) -> Callable[..., nn.Module]:
    config = self.config

    def dense(dropout_rate: float, name: str) -> nn.Module:
      return Mlp(
        config.mlp_dim,
        config.mlp_activations,
        dropout_rate,
        config.dtype,
        name=name,
      )

    if i not in self.sparse:
      return functools.partial(dense, config.dropout_rate)
    return functools.partial(moe.MoeLayer, self.sparse[i], dense, self.causal)
