# SPDX-License-Identifier: Apache-2.0
"""Expert initialisations: from one dense MLP parameter to E experts' ones.

An initialisation is called as init(key, name, dense, num_experts), under jit
where devices share what it makes: it is hashable, and uses jax.numpy. All
parameters of a layer get the layer's key, so that they can draw alike; `name`
is the parameter's path within the MLP ('wi_0/kernel', 'wo/kernel').
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray

# Parameters of the way out of an MLP, whose rows are its hidden units.
OUT = re.compile(r'(wo|Dense_1)/.*')

# How the models draw an expert's parameters, by name; the first that matches
# counts: ViT's kernels, all biases, T5's kernels.
_DRAWS = (
  (r'Dense_\d/kernel', jax.nn.initializers.xavier_uniform(batch_axis=0)),
  (r'.*/bias', jax.nn.initializers.normal(1e-6)),
  (
    r'.*',
    jax.nn.initializers.variance_scaling(
      1.0, 'fan_in', 'truncated_normal', batch_axis=0
    ),
  ),
)


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


def fresh(key: jax.Array, name: str, dense: Array, num_experts: int) -> Array:
  """Every expert is drawn anew, as the model draws it (figure 13, random).

  Of the dense MLP only the shape is used. T5's kernels are from a truncated
  normal distribution of variance 1 / fan-in, ViT's from a uniform one of
  variance 2 / (fan-in + fan-out), biases from N(0, 1e-6^2).

  Returns:
    [E, *dense.shape].
  """
  draw = next(draw for rule, draw in _DRAWS if re.fullmatch(rule, name))
  return draw(fold_in(key, name), (num_experts, *dense.shape), dense.dtype)


def partly_fresh(
  key: jax.Array, name: str, dense: Array, num_experts: int, share: float = 0.5
) -> Array:
  """The first experts are copies, the others `fresh` (figure 13, mixed).

  Args:
    key: the layer's.
    name: the parameter's.
    dense: the dense parameter.
    num_experts: E.
    share: of the experts that are copies, round(share * E) of them.
  """
  new = fresh(key, name, dense, num_experts)
  copied = jnp.arange(num_experts) < round(share * num_experts)
  return jnp.where(copied.reshape(-1, *[1] * dense.ndim), dense, new)


def drop_upcycle(
  key: jax.Array, name: str, dense: Array, num_experts: int, share: float = 0.5
) -> Array:
  """Copies in which other hidden units of each expert are drawn anew.

  Drop-Upcycling (Nakamura et al. 2025, section 3): in all kernels and biases of
  an expert the same units, each number from a normal distribution of the mean
  and standard deviation of those that it replaces. The bias of the output,
  which belongs to no unit, stays.

  Args:
    key: the layer's.
    name: the parameter's.
    dense: the dense parameter.
    num_experts: E.
    share: r, of the hidden units that are drawn anew, round(r * F) of them.
  """
  axis = hidden_axis(name)
  if axis is None:
    return copy(key, name, dense, num_experts)
  F, along = dense.shape[axis], [1] * dense.ndim
  along[axis] = F

  def expert(unit_key: jax.Array, key: jax.Array) -> jax.Array:
    dropped = jax.random.permutation(unit_key, F) < round(share * F)
    dropped = dropped.reshape(along)
    mean, std = (f(dense, where=dropped) for f in (jnp.mean, jnp.std))
    noise = jax.random.normal(key, dense.shape, dense.dtype)
    return jnp.where(dropped, mean + std * noise, dense)

  units, values = (
    jax.random.split(fold_in(key, n), num_experts) for n in ('units', name)
  )
  return jax.vmap(expert)(units, values)


def hidden_axis(name: str) -> int | None:
  """The axis of a parameter that is of hidden units; None: it has none."""
  if not OUT.fullmatch(name):
    return -1
  return 0 if name.endswith('/kernel') else None


def fold_in(key: jax.Array, name: str) -> jax.Array:
  """A key of its own for every name, the same in every process."""
  for byte in name.encode():
    key = jax.random.fold_in(key, byte)
  return key
