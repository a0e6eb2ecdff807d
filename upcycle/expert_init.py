# SPDX-License-Identifier: Apache-2.0
"""Expert initialisations: from one dense MLP parameter to E experts' ones.

An initialisation is called as init(key, name, dense, num_experts), under jit
where devices share what it makes: it is hashable, and uses jax.numpy. All
parameters of a layer get the layer's key, so that they can draw alike; `name`
is the parameter's path within the MLP ('wi_0/kernel', 'wo/kernel').
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def copy(key: jax.Array, name: str, dense: Array, num_experts: int) -> Array:
  """Every expert is the dense MLP (Sparse Upcycling, section 3).

  Returns:
    [E, *dense.shape]; of a numpy array a view, which costs no memory.
  """
  del key, name
  lib = jnp if isinstance(dense, jax.Array) else np
  return lib.broadcast_to(dense, (num_experts, *dense.shape))


def copy_with_noise(
  key: jax.Array, name: str, dense: Array, num_experts: int, std: float = 0.01
) -> Array:
  """Copies plus independent normal noise (Sparse Upcycling, appendix B.9).

  Args:
    key: the layer's.
    name: the parameter's.
    dense: the dense parameter.
    num_experts: E.
    std: of the noise, in units of the dense parameter's own.
  """
  key = fold_in(key, name)
  noise = jax.random.normal(key, (num_experts, *dense.shape), dense.dtype)
  return jnp.asarray(dense) + std * jnp.std(dense) * noise


def fold_in(key: jax.Array, name: str) -> jax.Array:
  """A key of its own for every name, the same in every process."""
  for byte in name.encode():
    key = jax.random.fold_in(key, byte)
  return key
