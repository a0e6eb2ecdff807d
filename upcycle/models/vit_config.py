# SPDX-License-Identifier: Apache-2.0
"""Shapes of Vision Transformers, and which layers are sparse."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from upcycle.models import layers, moe_config, presets


@dataclasses.dataclass(frozen=True)
class ViTConfig:
  """Shapes and options of a ViT; see `preset` for the published ones.

  Attributes:
    image_size: height and width of an image, in pixels.
    patch_size: height and width of a patch.
    channels: of an image.
    width: of the residual stream, M.
    depth: number of encoder blocks.
    mlp_dim: hidden width of an MLP, F.
    num_heads: attention heads, H.
    pool_type: what stands for an image: 'gap', the mean of its tokens; 'tok',
      a class token; 'map', attention pooling (Zhai et al., 2022, 3.2).
    representation_size: width of a tanh layer before the head; None: none.
    num_classes: of the head; None: the model returns features.
    head_bias: initial bias of the head; V-MoE takes -10 for the sigmoid loss.
    positions: 'learned', or 'sincos2d', fixed (MoCo v3).
    activation: 'gelu', the tanh form of the JAX checkpoints, or 'gelu_exact',
      that of Hugging Face's.
    norm_epsilon: of layer norms: 1e-6, or 1e-12 in Hugging Face's checkpoints.
    qk_norm: layer norm of queries and keys (Dehghani et al., 2023).
    dropout_rate: after embedding, attention and MLP, and within dense MLPs.
    dtype: compute dtype; parameters are float32.
    remat: recompute a block's activations in its backward pass; XLA's CPU
      compiler undoes it and saves no memory, microbatches do.
    moe: what the sparse layers are like; None: a dense model.
    moe_layers: which layers are sparse: 0-based indices, or a function from
      the number of layers to them.
  """

  image_size: int = 224
  patch_size: int = 16
  channels: int = 3
  width: int = 768
  depth: int = 12
  mlp_dim: int = 3072
  num_heads: int = 12
  pool_type: str = 'gap'
  representation_size: int | None = None
  num_classes: int | None = 1000
  head_bias: float = 0.0
  positions: str = 'learned'
  activation: str = 'gelu'
  norm_epsilon: float = 1e-6
  qk_norm: bool = False
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  remat: bool = False
  moe: moe_config.MoeConfig | None = None
  moe_layers: moe_config.Layers = moe_config.last_half

  def __post_init__(self):
    object.__setattr__(self, 'dtype', jnp.dtype(self.dtype))
    layers_ = moe_config.hashable(self.moe_layers)
    object.__setattr__(self, 'moe_layers', layers_)
    choices = {
      'pool_type': ('gap', 'tok', 'map'),
      'positions': ('learned', 'sincos2d'),
      'activation': tuple(sorted(layers.ACTIVATIONS)),
    }
    wrong = [
      f'{name}={getattr(self, name)!r} is none of {known}'
      for name, known in choices.items()
      if getattr(self, name) not in known
    ]
    sizes = 'image_size', 'patch_size', 'channels', 'width', 'depth'
    wrong += [
      f'{name}={getattr(self, name)} is less than 1'
      for name in (*sizes, 'mlp_dim', 'num_heads')
      if getattr(self, name) < 1
    ]
    parts = [('image_size', self.patch_size), ('width', self.num_heads)]
    parts += [('width', 4)] if self.positions == 'sincos2d' else []
    wrong += [
      f'{name}={getattr(self, name)} is no multiple of {of}'
      for name, of in parts
      if of > 0 and getattr(self, name) % of
    ]
    if wrong:
      raise ValueError(f'No such ViT: {"; ".join(wrong)}.')
    self.sparse_layers()

  @property
  def grid(self) -> int:
    """Patches along one side of an image."""
    return self.image_size // self.patch_size

  @property
  def tokens(self) -> int:
    """Length of an image's sequence, class token included."""
    return self.grid**2 + (self.pool_type == 'tok')

  def sparse_layers(self) -> dict[int, moe_config.MoeConfig]:
    """The MoE layers' configs by index.

    Raises:
      ValueError: they cannot be, see `moe_config.sparse_layers`.
    """
    return moe_config.sparse_layers(
      self.moe, self.moe_layers, self.depth, causal=False
    )


def _shape(width, depth, mlp_dim, num_heads):
  return {
    'width': width,
    'depth': depth,
    'mlp_dim': mlp_dim,
    'num_heads': num_heads,
  }


# Dosovitskiy et al. (2021), table 1; ti and s: Steiner et al. (2022), table 2;
# mu: big_vision's smallest, for tests.
_SIZES = {
  'mu': _shape(32, 1, 128, 2),
  'ti': _shape(192, 12, 768, 3),
  's': _shape(384, 12, 1536, 6),
  'b': _shape(768, 12, 3072, 12),
  'l': _shape(1024, 24, 4096, 16),
  'h': _shape(1280, 32, 5120, 16),
}

# 'vit_b16' is ViT-B with patches of 16 x 16 pixels.
PRESETS: dict[str, dict[str, Any]] = {
  f'vit_{size}{patch}': shape | {'patch_size': patch}
  for size, shape in _SIZES.items()
  for patch in (14, 16, 32)
}


def preset(name: str, **changes) -> ViTConfig:
  """The config of a published model, with changes to any of its fields.

  Raises:
    ValueError: no such preset, or no such field; the known ones are listed.
  """
  return presets.make(ViTConfig, PRESETS, name, changes)
