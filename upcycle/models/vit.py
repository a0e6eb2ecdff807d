# SPDX-License-Identifier: Apache-2.0
"""Vision Transformers, dense or with MoE layers.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021); Riquelme et al.,
"Scaling Vision with Sparse Mixture of Experts" (2021). Parameter names are
vit_jax's, those of MAP pooling big_vision's.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from upcycle import partition
from upcycle.models import layers, moe, vit_layers
from upcycle.models.vit_config import PRESETS, ViTConfig, preset

__all__ = ['PRESETS', 'ViT', 'ViTConfig', 'preset']


class EncoderBlock(nn.Module):
  """A pre-norm encoder layer."""

  config: ViTConfig
  mlp: Callable[..., nn.Module]

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B L M'],
    mask: Bool[Array, 'B L'] | None,
    deterministic: bool,
  ) -> Float[Array, 'B L M']:
    drop = nn.Dropout(self.config.dropout_rate, deterministic=deterministic)
    x = partition.spread(x)
    y = vit_layers.norm(self.config, 'LayerNorm_0')(x)
    name = 'MultiHeadDotProductAttention_0'
    x = x + drop(vit_layers.MultiHeadAttention(self.config, name=name)(y, y))
    y = vit_layers.norm(self.config, 'LayerNorm_1')(x)
    return x + drop(self.mlp()(y, mask, deterministic))


class Encoder(nn.Module):
  """Positions, blocks and a last norm."""

  config: ViTConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B L M'],
    mask: Bool[Array, 'B L'] | None,
    deterministic: bool,
  ) -> Float[Array, 'B L M']:
    config = self.config
    if config.positions == 'learned':
      x = vit_layers.PositionEmbedding(name='posembed_input')(x)
    else:
      # A class token has no place in the image.
      grid = vit_layers.sincos2d(config.grid, config.width)
      x = x.at[:, -len(grid) :].add(grid.astype(x.dtype))
    x = nn.Dropout(config.dropout_rate)(x, deterministic)
    block = EncoderBlock
    if config.remat:
      block = nn.remat(EncoderBlock, static_argnums=(3,))
    sparse = config.sparse_layers()
    for i in range(config.depth):
      mlp = _mlp(config, sparse.get(i))
      x = block(config, mlp, name=f'encoderblock_{i}')(x, mask, deterministic)
    return vit_layers.norm(config, 'encoder_norm')(x)


class ViT(nn.Module):
  """Images in, logits of their classes out."""

  config: ViTConfig

  @nn.compact
  def __call__(
    self,
    images: Float[Array, 'B _ _ _'],
    valid: Bool[Array, ' B'] | None = None,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'B _']:
    """Logits, or features if the model has no head.

    Args:
      images: height, width and channels, in [-1, 1].
      valid: False for images that only fill up a batch: MoE layers do not
        route their tokens.
      deterministic: no dropout or router noise, and evaluation's capacity in
        MoE layers.

    Raises:
      ValueError: the images have another size or number of channels.
    """
    config = self.config
    expected = (config.image_size, config.image_size, config.channels)
    if images.shape[1:] != expected:
      raise ValueError(
        f'Images of height, width, channels {images.shape[1:]} came to a ViT '
        f'for {expected}: resize them, or set image_size and channels.'
      )
    B = images.shape[0]
    x = layers.Dense(
      config.width,
      use_bias=True,
      kernel_init=nn.initializers.lecun_normal(),
      dtype=config.dtype,
      stored_in=(config.patch_size, config.patch_size, config.channels),
      name='embedding',
    )(vit_layers.patches(images, config.patch_size))
    if config.pool_type == 'tok':
      cls = self.param('cls', nn.initializers.zeros, (1, 1, config.width))
      cls = jnp.broadcast_to(cls.astype(x.dtype), (B, 1, config.width))
      x = jnp.concatenate([cls, x], axis=1)
    mask = None
    if valid is not None:
      mask = jnp.broadcast_to(valid[:, None], x.shape[:2])
    x = Encoder(config, name='Transformer')(x, mask, deterministic)
    if config.pool_type == 'map':
      x = vit_layers.MAPHead(config, name='MAPHead_0')(x)
    else:
      x = x[:, 0] if config.pool_type == 'tok' else x.mean(1, jnp.float32)
    dense = functools.partial(layers.Dense, use_bias=True)
    if config.representation_size is not None:
      x = nn.tanh(dense(config.representation_size, name='pre_logits')(x))
    if config.num_classes is None:
      return x.astype(jnp.float32)
    # Zeros, so that a fresh head says the same of every image.
    return dense(
      config.num_classes,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(config.head_bias),
      name='head',
    )(x)

  def example_inputs(self) -> dict[str, Float[Array, 'B _ _ _']]:
    """The least inputs that `init` takes."""
    size = self.config.image_size
    return {'images': jnp.zeros((1, size, size, self.config.channels))}

  def dense(self) -> 'ViT':
    """The model that this one is upcycled from."""
    return self._with(moe=None)

  def features(self) -> 'ViT':
    """The same model without a head, for frozen features."""
    return self._with(num_classes=None)

  def moe_layers(self) -> dict[str, moe.MoeConfig]:
    """What every MoE layer is like, by its path."""
    return {
      f'Transformer/encoderblock_{i}/Moe': sparse
      for i, sparse in self.config.sparse_layers().items()
    }

  def num_experts(self) -> tuple[int, ...]:
    """Of every MoE layer."""
    return tuple(sparse.num_experts for sparse in self.moe_layers().values())

  def experts_per_token(self) -> dict[str, float]:
    """`moe.experts_per_token` of every MoE layer, by its path."""
    layers = self.moe_layers().items()
    return {path: moe.experts_per_token(sparse) for path, sparse in layers}

  def expected_scales(self) -> dict[str, float]:
    """`moe.expected_scale` of every MoE layer, by its path."""
    width, row = self.config.width, self.config.tokens
    return {
      path: moe.expected_scale(sparse, width, row=row)
      for path, sparse in self.moe_layers().items()
    }

  def _with(self, **changes: Any) -> 'ViT':
    config = dataclasses.replace(self.config, **changes)
    return self.clone(config=config, parent=None)


def _mlp(
  config: ViTConfig, sparse: moe.MoeConfig | None
) -> Callable[[], nn.Module]:
  dense = functools.partial(vit_layers.mlp_block, config)
  if sparse is None:
    return functools.partial(dense, config.dropout_rate, name='MlpBlock_0')
  return functools.partial(
    moe.MoeLayer,
    sparse,
    dense,
    router_names=('Router', 'dense'),
    expert_name='Mlp',
    name='Moe',
  )
