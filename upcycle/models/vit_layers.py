# SPDX-License-Identifier: Apache-2.0
"""Layers of the Vision Transformer."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from upcycle.models import layers
from upcycle.models.mlp import Mlp
from upcycle.models.vit_config import ViTConfig

_xavier = nn.initializers.xavier_uniform()


def mlp_block(config: ViTConfig, dropout_rate: float, name: str) -> Mlp:
  """The MLP of a ViT: two biased projections around a GELU."""
  return Mlp(
    config.mlp_dim,
    (config.activation,),
    dropout_rate,
    config.dtype,
    in_names=('Dense_0',),
    out_name='Dense_1',
    use_bias=True,
    kernel_init=_xavier,
    bias_init=nn.initializers.normal(1e-6),
    broadcast_dropout=False,
    name=name,
  )


class MultiHeadAttention(nn.Module):
  """Biased multi-head attention, its kernels stored by head."""

  config: ViTConfig

  @nn.compact
  def __call__(
    self, queries: Float[Array, 'B Q M'], keys: Float[Array, 'B K M']
  ) -> Float[Array, 'B Q M']:
    config, M = self.config, queries.shape[-1]
    heads = config.num_heads, M // config.num_heads
    dense = functools.partial(
      layers.Dense, M, use_bias=True, kernel_init=_xavier, dtype=config.dtype
    )

    def project(name: str, x: Array) -> Array:
      y = dense(stored_out=heads, name=name)(x)
      return y.reshape(*x.shape[:2], *heads)

    q, k = project('query', queries), project('key', keys)
    if config.qk_norm:
      q = norm(config, 'query_ln', use_bias=False)(q)
      k = norm(config, 'key_ln', use_bias=False)(k)
    q = q / heads[1] ** 0.5
    y = layers.attend(q, k, project('value', keys), None, lambda x: x)
    y = y.reshape(*y.shape[:2], M)
    return dense(stored_in=heads, name='out')(y)


class PositionEmbedding(nn.Module):
  """One learned vector a place of the sequence."""

  @nn.compact
  def __call__(self, x: Float[Array, 'B L M']) -> Float[Array, 'B L M']:
    init = nn.initializers.normal(0.02)
    table = self.param('pos_embedding', init, (1, *x.shape[1:]))
    return x + table.astype(x.dtype)


class MAPHead(nn.Module):
  """Attention pooling by one learned query (Zhai et al., 2022, 3.2)."""

  config: ViTConfig

  @nn.compact
  def __call__(self, x: Float[Array, 'B L M']) -> Float[Array, 'B M']:
    B, _, M = x.shape
    probe = self.param('probe', _xavier, (1, 1, M)).astype(x.dtype)
    name = 'MultiHeadDotProductAttention_0'
    attention = MultiHeadAttention(self.config, name=name)
    x = attention(jnp.broadcast_to(probe, (B, 1, M)), x)
    y = norm(self.config, 'LayerNorm_0')(x)
    return (x + mlp_block(self.config, 0.0, name='MlpBlock_0')(y))[:, 0]


def patches(
  images: Float[Array, 'B Y X C'], size: int
) -> Float[Array, 'B N P']:
  """Pixels of each patch, row by row: what a strided convolution sees."""
  B, Y, X, C = images.shape
  x = images.reshape(B, Y // size, size, X // size, size, C)
  return x.swapaxes(2, 3).reshape(B, -1, size * size * C)


def sincos2d(
  grid: int, width: int, temperature: float = 10_000.0
) -> Float[Array, 'N M']:
  """Fixed positions of a square grid (MoCo v3; Chen et al., 2021)."""
  y, x = jnp.mgrid[:grid, :grid].reshape(2, -1, 1).astype(jnp.float32)
  frequency = temperature ** -jnp.linspace(0, 1, width // 4)
  waves = [f(p * frequency) for p in (x, y) for f in (jnp.sin, jnp.cos)]
  return jnp.concatenate(waves, axis=1)


def norm(config: ViTConfig, name: str, **options: Any) -> nn.LayerNorm:
  return nn.LayerNorm(
    config.norm_epsilon, dtype=config.dtype, name=name, **options
  )
