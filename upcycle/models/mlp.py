# SPDX-License-Identifier: Apache-2.0
"""The MLP of T5s and ViTs, alone or as the experts of an MoE layer."""

from collections.abc import Mapping
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from upcycle import experts
from upcycle.models import layers


class Mlp(nn.Module):
  """A hidden layer, the product of activated projections, and the way back.

  One activation makes the MLP of T5 1.0 and of ViT, several the gated one of
  T5 1.1 (Shazeer, "GLU Variants Improve Transformer", 2020).

  Attributes:
    mlp_dim: width of the hidden layer, F.
    activations: one a projection into it, of `layers.ACTIVATIONS`.
    dropout_rate: of the hidden layer.
    dtype: compute dtype.
    in_names: names of the projections; None: T5X's, `wi` or `wi_0`, `wi_1`.
    out_name: name of the way back.
    use_bias: whether all projections have one.
    kernel_init: of all.
    bias_init: of all.
    broadcast_dropout: one mask for all positions, as in T5.
  """

  mlp_dim: int
  activations: tuple[str, ...]
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  in_names: tuple[str, ...] | None = None
  out_name: str = 'wo'
  use_bias: bool = False
  kernel_init: layers.Initializer = layers.fan_in_truncated
  bias_init: layers.Initializer = nn.initializers.zeros
  broadcast_dropout: bool = True

  @nn.compact
  def __call__(
    self,
    x: Float[Array, '*B M'],
    mask: Bool[Array, '*B'] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, '*B M']:
    """The mask is the sparse layer's: a dense one does not need it."""
    del mask
    dense = functools.partial(
      layers.Dense,
      use_bias=self.use_bias,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      dtype=self.dtype,
    )
    h = self.activate()(
      *(dense(self.mlp_dim, name=name)(x) for name in self.names())
    )
    axes = (-2,) if self.broadcast_dropout else ()
    h = nn.Dropout(self.dropout_rate, axes)(h, deterministic)
    return dense(x.shape[-1], name=self.out_name)(h)

  @nn.nowrap
  def names(self) -> tuple[str, ...]:
    """Of the projections into the hidden layer."""
    if self.in_names is not None:
      return self.in_names
    if len(self.activations) == 1:
      return ('wi',)
    return tuple(f'wi_{i}' for i in range(len(self.activations)))

  @nn.nowrap
  def activate(self) -> experts.Activate:
    """From the projections to the hidden layer."""
    return _activation(self.activations)

  @nn.nowrap
  def parameters(self, params: Mapping[str, Any]) -> experts.Mlp:
    """This module's parameters, or those of E of them, for `experts.apply`."""
    into = [params[name] for name in self.names()]
    out = params[self.out_name]
    return experts.Mlp(
      tuple(p['kernel'] for p in into),
      tuple(p['bias'] for p in into) if self.use_bias else (),
      out['kernel'],
      out['bias'] if self.use_bias else None,
    )

  @nn.nowrap
  def keep(
    self, key: jax.Array, E: int, rows: int | None
  ) -> Float[Array, 'E _ F'] | None:
    """Dropout of E experts' hidden layers, each with numbers of its own.

    Args:
      key: of the random numbers.
      E: how many experts.
      rows: of each expert; None: they differ in it.

    Raises:
      ValueError: experts that differ in their rows are to drop other units in
        each row.
    """
    if not self.dropout_rate:
      return None
    if rows is None and not self.broadcast_dropout:
      raise ValueError(
        'With routing.dropless, expert_dropout drops the same units in all '
        'rows of an expert, but this MLP has broadcast_dropout=False, as ViTs '
        'do: set expert_dropout to 0, or use routing.top_k.'
      )
    rows = 1 if self.broadcast_dropout else rows
    kept = jax.random.bernoulli(
      key, 1 - self.dropout_rate, (E, rows, self.mlp_dim)
    )
    return kept / (1 - self.dropout_rate)


@functools.cache  # the same function every time, or JAX would compile anew
def _activation(activations: tuple[str, ...]) -> experts.Activate:
  return functools.partial(_activate, activations)


def _activate(activations: tuple[str, ...], *projections: Array) -> Array:
  return math.prod(
    layers.ACTIVATIONS[name](x)
    for name, x in zip(activations, projections, strict=True)
  )
