# SPDX-License-Identifier: Apache-2.0
"""Weights in eight or sixteen bits, for models that are only applied.

Kernels and embeddings are kept so in memory, and are float32 again where a
jitted function uses them; norms, biases, routers and positions stay float32.
Qwix would do this by intercepting the matmuls that modules make with their
parameters; those of the experts are in a function with a backward pass of its
own, where it sees none, and what is left of the task is the few lines here.
"""

from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from upcycle import trees

WEIGHTS = 'float32', 'bfloat16', 'int8'

# Which parameters, and which of their axes a matmul sums over: each number of
# the other ones, an output of one expert, a row of the vocabulary, has a scale
# of its own. What none matches stays as it is.
AXES: tuple[tuple[str, slice], ...] = (
  (r'.*/(?:mlp/expert|Moe/Mlp)/.*/kernel', slice(1, -1)),
  (r'.*/(?:mlp/router|Moe/Router)/.*', slice(0, 0)),
  (r'.*/(?:query|key|value)/kernel', slice(0, 1)),
  (r'.*/kernel', slice(0, -1)),
  (r'token_embedder/embedding', slice(1, None)),
)


class Quantized(NamedTuple):
  """An array in eight bits: values * scale.

  Attributes:
    values: from -127 to 127.
    scale: of each output channel; 1 long where a matmul sums.
  """

  values: Int8[Array, '*N']
  scale: Float[Array, '*_']

  @property
  def nbytes(self) -> int:
    return self.values.nbytes + self.scale.nbytes


def quantize(params: trees.Tree, weights: str) -> dict[str, Any]:
  """Parameters with kernels and embeddings in fewer bits.

  Args:
    params: arrays.
    weights: one of `WEIGHTS`: 'bfloat16'; 'int8', symmetric around 0, so that
      the largest number of a channel is 127 scales; 'float32' changes nothing.
  """
  flat = trees.flatten(params)
  return trees.unflatten({p: leaf(p, x, weights) for p, x in flat.items()})


def leaf(path: str, x: Array, weights: str) -> Array | Quantized:
  """One parameter of `quantize`.

  Raises:
    ValueError: weights are none of `WEIGHTS`.
  """
  if weights not in WEIGHTS:
    raise ValueError(f'Weights are {" or ".join(WEIGHTS)}, not {weights!r}.')
  axes = _summed(path, x.ndim)
  if weights == 'float32' or not axes:
    return x
  return x.astype(jnp.bfloat16) if weights == 'bfloat16' else _int8(x, axes)


def _summed(path: str, ndim: int) -> tuple[int, ...]:
  for pattern, axes in AXES:
    if re.fullmatch(pattern, path):
      return tuple(range(ndim)[axes])
  return ()


@functools.partial(jax.jit, static_argnums=1)
def _int8(x: Array, axes: tuple[int, ...]) -> Quantized:
  x = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(x), axes, keepdims=True) / 127
  # A channel of zeros, as of a fresh head, has the scale 0.
  values = jnp.round(x / jnp.where(scale > 0, scale, 1))
  return Quantized(values.astype(jnp.int8), scale)


def dequantize(params: trees.Tree) -> dict[str, Any]:
  """Parameters in float32, from which modules go on to what they compute in."""
  return trees.unflatten(
    {path: _float32(x) for path, x in trees.flatten(params).items()}
  )


def _float32(x: Array | Quantized) -> Float[Array, '*_']:
  if isinstance(x, Quantized):
    return x.values.astype(jnp.float32) * x.scale
  return x.astype(jnp.float32)


def nbytes(params: trees.Tree) -> int:
  """What parameters take in memory, quantized or not."""
  return sum(x.nbytes for x in trees.flatten(params).values())


@dataclasses.dataclass(frozen=True)
class Model:
  """A model that takes quantized parameters; in all else the one within.

  Attributes:
    model: takes float32 parameters.
  """

  model: Any

  def apply(
    self, variables: Mapping[str, Any], *args: Any, **kwargs: Any
  ) -> Any:
    """`model.apply`; under jit, float32 parameters are temporaries."""
    params = dequantize(variables['params'])
    return self.model.apply({**variables, 'params': params}, *args, **kwargs)

  def features(self) -> 'Model':
    """See `ViT.features`."""
    return Model(self.model.features())

  def serving(self) -> 'Model':
    """See `T5.serving`."""
    return Model(self.model.serving())

  def __getattr__(self, name: str) -> Any:
    return getattr(self.model, name)
