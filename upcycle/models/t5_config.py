# SPDX-License-Identifier: Apache-2.0
"""Shapes of T5 1.0, T5 1.1 and mT5, and which layers are sparse."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from upcycle.models import layers, moe, presets


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Shapes and options of a T5; see `preset` for the published ones.

  Attributes:
    vocab_size: rows of the embedding, padding included.
    emb_dim: width of the residual stream, M.
    num_heads: attention heads, H.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    head_dim: width of a head, D.
    mlp_dim: hidden width of an MLP, F.
    mlp_activations: one a projection: ('relu',) in T5 1.0.
    logits_via_embedding: tied embedding, outputs scaled by M**-0.5 (T5 1.0).
    dropout_rate: everywhere but in experts.
    dtype: compute dtype; parameters are float32.
    remat: recompute a layer's activations in its backward pass; XLA's CPU
      compiler undoes it and saves no memory, microbatches do.
    encoder_moe: the encoder's sparse layers; None: a dense encoder.
    decoder_moe: the decoder's sparse layers; None: a dense decoder.
    encoder_moe_layers: which layers are sparse: 0-based indices, or a function
      from the number of layers to them.
    decoder_moe_layers: likewise.
  """

  vocab_size: int = 32128
  emb_dim: int = 768
  num_heads: int = 12
  num_encoder_layers: int = 12
  num_decoder_layers: int = 12
  head_dim: int = 64
  mlp_dim: int = 2048
  mlp_activations: tuple[str, ...] = ('gelu', 'linear')
  logits_via_embedding: bool = False
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  remat: bool = False
  encoder_moe: moe.MoeConfig | None = None
  decoder_moe: moe.MoeConfig | None = None
  encoder_moe_layers: moe.Layers = moe.every_other
  decoder_moe_layers: moe.Layers = moe.every_other

  def __post_init__(self):
    object.__setattr__(self, 'dtype', jnp.dtype(self.dtype))
    for name in ('encoder_moe_layers', 'decoder_moe_layers'):
      layers_ = moe.hashable(getattr(self, name))
      object.__setattr__(self, name, layers_)
    unknown = set(self.mlp_activations) - layers.ACTIVATIONS.keys()
    if unknown:
      raise ValueError(
        f'There are no activations {sorted(unknown)}; there are '
        f'{sorted(layers.ACTIVATIONS)}.'
      )
    self.sparse_layers('encoder')
    self.sparse_layers('decoder')

  def sparse_layers(self, stack: str) -> dict[int, moe.MoeConfig]:
    """The MoE layers of 'encoder' or 'decoder': their configs by index.

    Raises:
      ValueError: they cannot be, see `moe.sparse_layers`.
    """
    return moe.sparse_layers(
      getattr(self, f'{stack}_moe'),
      getattr(self, f'{stack}_moe_layers'),
      getattr(self, f'num_{stack}_layers'),
      causal=stack == 'decoder',
    )


def _shape(emb, heads, layers, mlp, head_dim=64):
  return {
    'emb_dim': emb,
    'num_heads': heads,
    'num_encoder_layers': layers,
    'num_decoder_layers': layers,
    'head_dim': head_dim,
    'mlp_dim': mlp,
  }


_T5_1_0 = {'mlp_activations': ('relu',), 'logits_via_embedding': True}
_MT5 = {'vocab_size': 250112}

# As published with T5X: emb_dim, num_heads, layers of each stack, mlp_dim.
PRESETS: dict[str, dict[str, Any]] = {
  't5_small': _shape(512, 8, 6, 2048) | _T5_1_0,
  't5_base': _shape(768, 12, 12, 3072) | _T5_1_0,
  't5_large': _shape(1024, 16, 24, 4096) | _T5_1_0,
  't5_3b': _shape(1024, 32, 24, 16384, 128) | _T5_1_0,
  't5_11b': _shape(1024, 128, 24, 65536, 128) | _T5_1_0,
  't5_1_1_small': _shape(512, 6, 8, 1024),
  't5_1_1_base': _shape(768, 12, 12, 2048),
  't5_1_1_large': _shape(1024, 16, 24, 2816),
  't5_1_1_xl': _shape(2048, 32, 24, 5120),
  't5_1_1_xxl': _shape(4096, 64, 24, 10240),
  'mt5_small': _shape(512, 6, 8, 1024) | _MT5,
  'mt5_base': _shape(768, 12, 12, 2048) | _MT5,
  'mt5_large': _shape(1024, 16, 24, 2816) | _MT5,
  'mt5_xl': _shape(2048, 32, 24, 5120) | _MT5,
  'mt5_xxl': _shape(4096, 64, 24, 10240) | _MT5,
}


def preset(name: str, **changes) -> T5Config:
  """The config of a published model, with changes to any of its fields.

  Raises:
    ValueError: no such preset, or no such field; the known ones are listed.
  """
  return presets.make(T5Config, PRESETS, name, changes)
