# SPDX-License-Identifier: Apache-2.0
"""T5 1.0, T5 1.1 and mT5, dense or with MoE layers.

Raffel et al., "Exploring the Limits of Transfer Learning" (2020); Shazeer,
"GLU Variants Improve Transformer" (2020). Parameter names are T5X's.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from upcycle.models import layers, moe
from upcycle.models.t5_config import PRESETS, T5Config, preset
from upcycle.models.t5_stack import Stack

__all__ = ['PRESETS', 'T5', 'T5Config', 'preset']


class T5(nn.Module):
  """An encoder-decoder: tokens in, next-token logits out."""

  config: T5Config

  def setup(self):
    config = self.config
    self.token_embedder = nn.Embed(
      config.vocab_size,
      config.emb_dim,
      dtype=config.dtype,
      embedding_init=nn.initializers.normal(1.0),
    )
    self.encoder = Stack(
      config,
      config.num_encoder_layers,
      config.sparse_layers('encoder'),
      causal=False,
    )
    self.decoder = Stack(
      config,
      config.num_decoder_layers,
      config.sparse_layers('decoder'),
      causal=True,
    )

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
    if (encoder_segment_ids is None) != (decoder_segment_ids is None):
      raise ValueError('Packed batches have segment ids on both sides.')
    encoded = self.encode(
      encoder_input_tokens, encoder_segment_ids, deterministic=deterministic
    )
    encoder_valid = encoder_input_tokens > 0
    decoder_valid = _decoder_valid(decoder_input_tokens)
    targets = decoder_valid
    if decoder_target_tokens is not None:
      targets = decoder_target_tokens > 0
    causal = jnp.tril(jnp.ones((targets.shape[1],) * 2, bool))
    y = self.decoder(
      self.token_embedder(decoder_input_tokens),
      decoder_valid,
      targets,
      causal & _allowed(targets, targets, decoder_segment_ids),
      encoded,
      _allowed(
        targets, encoder_valid, decoder_segment_ids, encoder_segment_ids
      ),
      deterministic,
    )
    return self._logits(y)

  def encode(
    self,
    encoder_input_tokens: Int[Array, 'B K'],
    encoder_segment_ids: Int[Array, 'B K'] | None = None,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'B K M']:
    """The encoder's output."""
    valid = encoder_input_tokens > 0
    return self.encoder(
      self.token_embedder(encoder_input_tokens),
      valid,
      valid,
      _allowed(valid, valid, encoder_segment_ids),
      deterministic=deterministic,
    )

  def step(
    self,
    tokens: Int[Array, ' B'],
    index: Int[Array, ''],
    encoder_valid: Bool[Array, 'B K'],
    encoded: Float[Array, 'B K M'] | None = None,
    *,
    max_length: int,
  ) -> Float[Array, 'B V']:
    """Logits of the next token of each row, by two collections.

    The first call, with `encoded` and without them, makes them; its logits mean
    nothing. In all others `cache` holds what comes before and is returned anew,
    and `memory` what the decoder sees of the encoder, which stays.

    Args:
      tokens: the last tokens of each row; 0 is the start.
      index: where they stand, from 0.
      encoder_valid: encoder positions that are not padding.
      encoded: the encoder's output, in the first call only.
      max_length: tokens that the cache has room for.
    """
    ones = jnp.ones((len(tokens), 1), bool)
    before = jnp.arange(max_length) <= index
    y = self.decoder(
      self.token_embedder(tokens[:, None]),
      ones,
      ones,
      jnp.broadcast_to(before, (len(tokens), 1, max_length)),
      encoded,
      encoder_valid[:, None],
      True,
      layers.Place(index, max_length),
    )
    return self._logits(y)[:, 0]

  def _logits(self, y: Float[Array, 'B L _']) -> Float[Array, 'B L V']:
    """Of the decoder's output, which they are already if untied."""
    if not self.config.logits_via_embedding:
      return y
    y = y.astype(jnp.float32) / self.config.emb_dim**0.5
    return y @ self.token_embedder.embedding.T

  def example_inputs(self) -> dict[str, Int[Array, 'B L']]:
    """The least inputs that `init` takes: shapes of parameters need no more."""
    tokens = jnp.ones((1, 1), jnp.int32)
    return {'encoder_input_tokens': tokens, 'decoder_input_tokens': tokens}

  def dense(self) -> 'T5':
    """The model that this one is upcycled from."""
    config = self.config
    config = dataclasses.replace(config, encoder_moe=None, decoder_moe=None)
    return self.clone(config=config, parent=None)

  def serving(self) -> 'T5':
    """The same model, whose decoder drops no token.

    In a step of decoding a token would compete for room with those of other
    rows, not with those before it: here every expert has room for all.
    """
    config = self.config
    if config.decoder_moe is not None:
      experts = config.decoder_moe.num_experts
      most = max(experts) if isinstance(experts, tuple) else experts
      sparse = dataclasses.replace(
        config.decoder_moe, eval_capacity_factor=float(most)
      )
      config = dataclasses.replace(config, decoder_moe=sparse)
    return self.clone(config=config, parent=None)

  def moe_layers(self) -> dict[str, moe.MoeConfig]:
    """What every MoE layer is like, by its path."""
    return {
      f'{stack}/layers_{i}/mlp': sparse
      for stack in ('encoder', 'decoder')
      for i, sparse in self.config.sparse_layers(stack).items()
    }

  def num_experts(self) -> tuple[int, ...]:
    """Of every MoE layer."""
    return tuple(sparse.num_experts for sparse in self.moe_layers().values())

  def experts_per_token(self) -> dict[str, float]:
    """`moe.experts_per_token` of every MoE layer, by its path."""
    return {
      path: moe.experts_per_token(sparse, causal=path.startswith('decoder'))
      for path, sparse in self.moe_layers().items()
    }

  def expected_scales(self) -> dict[str, float]:
    """`moe.expected_scale` of every MoE layer, by its path."""
    return {
      path: moe.expected_scale(
        sparse, self.config.emb_dim, causal=path.startswith('decoder')
      )
      for path, sparse in self.moe_layers().items()
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
