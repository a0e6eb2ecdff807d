# SPDX-License-Identifier: Apache-2.0
"""T5 1.0, T5 1.1 and mT5, dense or with MoE layers.

Raffel et al., "Exploring the Limits of Transfer Learning" (2020); Shazeer,
"GLU Variants Improve Transformer" (2020). Parameter names are T5X's.
"""

from collections.abc import Callable
import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from upcycle import partition
from upcycle.models import layers, moe
from upcycle.models.mlp import Mlp
from upcycle.models.t5_config import PRESETS, T5Config, preset

__all__ = ['PRESETS', 'T5', 'T5Config', 'preset']


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
    allowed: Bool[Array, 'B L L'],
    bias: Float[Array, '1 H L L'],
    encoded: Float[Array, 'B K M'] | None,
    cross_allowed: Bool[Array, 'B L K'] | None,
    deterministic: bool,
  ) -> Float[Array, 'B L M']:
    """Self-attention, cross-attention in the decoder, MLP.

    Args:
      x: the residual stream.
      valid: positions whose normed inputs are kept, others become 0.
      real: positions that an MoE layer routes.
      allowed: which positions attend to which.
      bias: of their relative positions.
      encoded: the encoder's output.
      cross_allowed: which positions attend to which of the encoder's.
      deterministic: no dropout.
    """
    config = self.config

    def norm(name: str, x: Array) -> Array:
      x = layers.RMSNorm(dtype=config.dtype, name=name)(x)
      return x * valid[..., None].astype(x.dtype)

    def attend(name: str, q: Array, k: Array, *mask_and_bias) -> Array:
      attention = layers.Attention(
        config.num_heads,
        config.head_dim,
        config.dropout_rate,
        config.dtype,
        name=name,
      )
      return attention(q, k, *mask_and_bias, deterministic=deterministic)

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
    allowed: Bool[Array, 'B L L'],
    encoded: Float[Array, 'B K M'] | None = None,
    cross_allowed: Bool[Array, 'B L K'] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, 'B L _']:
    config, L = self.config, x.shape[1]
    drop = layers.dropout(config.dropout_rate, deterministic)
    bias = layers.RelativePositionBias(
      config.num_heads, bidirectional=not self.causal, name='relpos_bias'
    )(L, L)
    layer = nn.remat(Layer, static_argnums=(8,)) if config.remat else Layer
    x = drop(x)
    for i in range(self.num_layers):
      x = layer(config, self._mlp(i), self.causal, name=f'layers_{i}')(
        x, valid, real, allowed, bias, encoded, cross_allowed, deterministic
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


class T5(nn.Module):
  """An encoder-decoder: tokens in, next-token logits out."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    encoder_input_tokens: Int[Array, 'B K'],
    decoder_input_tokens: Int[Array, 'B L'],
    decoder_target_tokens: Int[Array, 'B L'] | None = None,
    encoder_segment_ids: Int[Array, 'B K'] | None = None,
    decoder_segment_ids: Int[Array, 'B L'] | None = None,
    encoder_positions: Int[Array, 'B K'] | None = None,
    decoder_positions: Int[Array, 'B L'] | None = None,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'B L V']:
    """Logits of every next token; token 0 is padding.

    Args:
      encoder_input_tokens: inputs.
      decoder_input_tokens: targets shifted right by one within each example.
      decoder_target_tokens: if given, positions whose target is padding are
        masked as in T5X; else they are told from the inputs.
      encoder_segment_ids: example of each token, from 1, in packed batches;
        tokens attend within their example only. All or none are given.
      decoder_segment_ids: likewise.
      encoder_positions: taken because feature converters make them, and not
        used: T5's distances are the same in a packed row and out of it.
      decoder_positions: likewise.
      deterministic: no dropout, and evaluation's capacity in MoE layers.

    Raises:
      ValueError: segment ids of one side only.
    """
    del encoder_positions, decoder_positions
    config = self.config
    if (encoder_segment_ids is None) != (decoder_segment_ids is None):
      raise ValueError('Packed batches have segment ids on both sides.')
    encoder_valid = encoder_input_tokens > 0
    decoder_valid = _decoder_valid(decoder_input_tokens)
    targets = decoder_valid
    if decoder_target_tokens is not None:
      targets = decoder_target_tokens > 0

    embedder = nn.Embed(
      config.vocab_size,
      config.emb_dim,
      dtype=config.dtype,
      embedding_init=nn.initializers.normal(1.0),
      name='token_embedder',
    )
    encoded = Stack(
      config,
      config.num_encoder_layers,
      config.sparse_layers('encoder'),
      causal=False,
      name='encoder',
    )(
      embedder(encoder_input_tokens),
      encoder_valid,
      encoder_valid,
      _allowed(encoder_valid, encoder_valid, encoder_segment_ids),
      deterministic=deterministic,
    )
    causal = jnp.tril(jnp.ones((targets.shape[1],) * 2, bool))
    y = Stack(
      config,
      config.num_decoder_layers,
      config.sparse_layers('decoder'),
      causal=True,
      name='decoder',
    )(
      embedder(decoder_input_tokens),
      decoder_valid,
      targets,
      causal & _allowed(targets, targets, decoder_segment_ids),
      encoded,
      _allowed(
        targets, encoder_valid, decoder_segment_ids, encoder_segment_ids
      ),
      deterministic,
    )
    if config.logits_via_embedding:
      y = y.astype(jnp.float32) / config.emb_dim**0.5
      y = y @ embedder.embedding.T
    return y

  def example_inputs(self) -> dict[str, Int[Array, 'B L']]:
    """The least inputs that `init` takes: shapes of parameters need no more."""
    tokens = jnp.ones((1, 1), jnp.int32)
    return {'encoder_input_tokens': tokens, 'decoder_input_tokens': tokens}

  def dense(self) -> 'T5':
    """The model that this one is upcycled from."""
    config = self.config
    config = dataclasses.replace(config, encoder_moe=None, decoder_moe=None)
    return self.clone(config=config, parent=None)

  def num_experts(self) -> tuple[int, ...]:
    """Of every MoE layer."""
    return tuple(
      sparse.num_experts
      for stack in ('encoder', 'decoder')
      for sparse in self.config.sparse_layers(stack).values()
    )

  def expected_scales(self) -> dict[str, float]:
    """`moe.expected_scale` of every MoE layer, by its path."""
    return {
      f'{stack}/layers_{i}/mlp': moe.expected_scale(
        sparse, self.config.emb_dim, causal=stack == 'decoder'
      )
      for stack in ('encoder', 'decoder')
      for i, sparse in self.config.sparse_layers(stack).items()
    }


def _allowed(
  queries: Bool[Array, 'B Q'],
  keys: Bool[Array, 'B K'],
  query_segments: Int[Array, 'B Q'] | None,
  key_segments: Int[Array, 'B K'] | None = None,
) -> Bool[Array, 'B Q K']:
  """Which query may attend to which key: both real, of one example."""
  allowed = queries[:, :, None] & keys[:, None, :]
  if query_segments is not None:
    if key_segments is None:
      key_segments = query_segments
    allowed &= query_segments[:, :, None] == key_segments[:, None, :]
  return allowed


def _decoder_valid(tokens: Int[Array, 'B L']) -> Bool[Array, 'B L']:
  """Decoder positions that are not padding.

  Token 0 is both padding and the start of every example: a 0 in the first
  place, or right before a real token, is a start.
  """
  real = tokens > 0
  before_real = jnp.pad(real[:, 1:], ((0, 0), (0, 1)))
  return (real | before_real).at[:, 0].set(True)
