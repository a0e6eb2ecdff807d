# SPDX-License-Identifier: Apache-2.0
"""Expert initialisations: a new one is tested by adding it to INITS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upcycle import expert_init

INITS = {
  'copy': expert_init.copy,
  'copy_with_noise': expert_init.copy_with_noise,
}
E = 4
every_init = pytest.mark.parametrize('init', INITS.values(), ids=INITS.keys())


def mlp(dtype=np.float32) -> dict[str, np.ndarray]:
  """A gated MLP and a bias: M 24, F 64."""
  rng = np.random.default_rng(0)
  shapes = {
    'wi_0/kernel': (24, 64),
    'wi_1/kernel': (24, 64),
    'wo/kernel': (64, 24),
    'wo/bias': (24,),
  }
  return {k: rng.normal(size=v).astype(dtype) for k, v in shapes.items()}


def experts(init, dense, seed=0):
  key = jax.random.key(seed)
  return {name: init(key, name, x, E) for name, x in dense.items()}


@every_init
@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
def test_shape_and_dtype(init, dtype):
  dense = mlp(dtype)
  for name, x in experts(init, dense).items():
    assert x.shape == (E, *dense[name].shape), name
    assert x.dtype == dtype, name


@every_init
def test_experts_are_like_their_mlp(init):
  """Mean and spread of each expert are those of the dense parameter."""
  dense = mlp()
  for name, x in experts(init, dense).items():
    for expert in np.asarray(x):
      np.testing.assert_allclose(expert.mean(), dense[name].mean(), atol=0.3)
      np.testing.assert_allclose(expert.std(), dense[name].std(), rtol=0.3)


@every_init
def test_the_key_decides(init):
  dense = mlp()
  once, again = experts(init, dense, seed=1), experts(init, dense, seed=1)
  for name in dense:
    np.testing.assert_array_equal(once[name], again[name])


@every_init
def test_numpy_and_jax_agree_also_under_jit(init):
  dense = mlp()
  eager = experts(init, dense)
  jitted = jax.jit(lambda d: experts(init, d))(dense)
  for name in dense:
    np.testing.assert_allclose(jitted[name], eager[name], rtol=1e-6, atol=1e-6)


def test_copies_are_equal():
  dense = mlp()
  for name, x in experts(expert_init.copy, dense).items():
    for expert in x:
      np.testing.assert_array_equal(expert, dense[name])


def test_copies_of_numpy_arrays_cost_nothing():
  x = expert_init.copy(jax.random.key(0), 'wo/kernel', mlp()['wo/kernel'], E)
  assert isinstance(x, np.ndarray)
  assert x.strides[0] == 0


@pytest.mark.parametrize('std', [0.01, 0.5])
def test_noise_has_its_size_and_is_independent(std):
  dense = mlp()['wi_0/kernel'] * 7
  key = jax.random.key(3)
  x = expert_init.copy_with_noise(key, 'wi_0/kernel', dense, E, std=std)
  noise = (np.asarray(x) - dense).reshape(E, -1)
  np.testing.assert_allclose(noise.std(1), std * dense.std(), rtol=0.1)
  correlation = np.corrcoef(noise) - np.eye(E)
  assert np.abs(correlation).max() < 0.1
  other = expert_init.copy_with_noise(key, 'wi_1/kernel', dense, E, std=std)
  other = (np.asarray(other) - dense).reshape(E, -1)
  assert abs(np.corrcoef(noise[0], other[0])[0, 1]) < 0.1
