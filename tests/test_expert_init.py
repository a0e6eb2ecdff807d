# SPDX-License-Identifier: Apache-2.0
"""Expert initialisations: a new one is tested by adding it to INITS."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import test_t5, test_vit
from upcycle import expert_init, initialize, trees
from upcycle.models import t5, vit

INITS = {
  'copy': expert_init.copy,
  'copy_with_noise': expert_init.copy_with_noise,
  'fresh': expert_init.fresh,
  'partly_fresh': expert_init.partly_fresh,
  'drop_upcycle': expert_init.drop_upcycle,
}
E = 4
MODELS = t5.T5(test_t5.SPARSE), vit.ViT(test_vit.sparse(test_vit.TINY))
every_init = pytest.mark.parametrize('init', INITS.values(), ids=INITS.keys())


def mlp(dtype=np.float32) -> dict[str, np.ndarray]:
  """A gated MLP and a ViT's: M 24, F 64; kernels as large as fresh ones."""
  rng = np.random.default_rng(0)
  shapes = {
    'wi_0/kernel': (24, 64, 24**-0.5),
    'wi_1/kernel': (24, 64, 24**-0.5),
    'wo/kernel': (64, 24, 64**-0.5),
    'Dense_0/kernel': (24, 64, 44**-0.5),
    'Dense_0/bias': (64, 1.0),
    'Dense_1/kernel': (64, 24, 44**-0.5),
    'Dense_1/bias': (24, 1.0),
  }
  return {
    k: rng.normal(0, std, size).astype(dtype)
    for k, (*size, std) in shapes.items()
  }


def experts(init, dense, seed=0, **options):
  key = jax.random.key(seed)
  return {name: init(key, name, x, E, **options) for name, x in dense.items()}


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
    fresh = init in (expert_init.fresh, expert_init.partly_fresh)
    for expert in np.asarray(x):
      if fresh and name.endswith('/bias'):
        continue  # of which the model makes zeros, nearly
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


@pytest.mark.parametrize('model', MODELS, ids=['t5', 'vit'])
def test_fresh_experts_are_drawn_as_the_model_draws_them(model):
  """Spread, and the largest number, which tells the distributions apart."""
  params = trees.flatten(jax.jit(lambda: initialize.init_params(model, 0))())
  layer = re.compile(r'.*/(?:expert|Moe/Mlp)/(.*)')
  found = {m[1]: x for p, x in params.items() if (m := layer.fullmatch(p))}
  assert len(found) == {'T5': 3, 'ViT': 4}[type(model).__name__]
  for name, want in found.items():
    fresh = expert_init.fresh(jax.random.key(0), name, want[0], len(want))
    assert fresh.shape == want.shape
    spread, expected = (x.reshape(len(x), -1).std(1) for x in (fresh, want))
    np.testing.assert_allclose(spread, expected, rtol=0.3)
    if name.endswith('/kernel'):
      np.testing.assert_allclose(abs(fresh).max(), abs(want).max(), rtol=0.02)


def test_fresh_experts_are_neither_the_mlp_nor_each_other():
  dense = mlp()
  for name, x in experts(expert_init.fresh, dense).items():
    vectors = np.stack([dense[name], *x]).reshape(E + 1, -1)
    correlation = np.corrcoef(vectors) - np.eye(E + 1)
    assert np.abs(correlation).max() < 0.5, name


@pytest.mark.parametrize('share, copies', [(0.0, 0), (0.5, 2), (0.8, 3)])
def test_the_first_experts_are_copies_the_others_fresh(share, copies):
  dense = mlp()
  mixed = experts(expert_init.partly_fresh, dense, share=share)
  fresh = experts(expert_init.fresh, dense)
  for name, x in mixed.items():
    np.testing.assert_array_equal(x[copies:], fresh[name][copies:])
    for expert in x[:copies]:
      np.testing.assert_array_equal(expert, dense[name])


def units(name, x):
  """x [..., F], with whatever belongs to a hidden unit in its column."""
  return x.swapaxes(-1, -2) if name in ('wo/kernel', 'Dense_1/kernel') else x


@pytest.mark.parametrize('share, dropped', [(0.0, 0), (0.5, 32), (0.3, 19)])
def test_the_same_units_are_drawn_anew_in_all_matrices(share, dropped):
  dense = mlp()
  found = experts(expert_init.drop_upcycle, dense, share=share)
  bias = 'Dense_1/bias'
  np.testing.assert_array_equal(found.pop(bias), [dense[bias]] * E)
  changed = {}
  for name, x in found.items():
    new = units(name, np.asarray(x) != dense[name])
    changed[name] = new.any(1) if new.ndim == 3 else new
    # A unit is drawn anew as a whole.
    assert new.sum() == changed[name].sum() * new.size / changed[name].size
  first = changed['wi_0/kernel']
  assert (first.sum(1) == dropped).all()
  for name, other in changed.items():
    np.testing.assert_array_equal(other, first, err_msg=name)
  experts_differ = len({tuple(x) for x in first.tolist()})
  assert experts_differ == (E if dropped else 1)


def test_units_are_drawn_with_their_mean_and_spread_each_for_itself():
  dense = 3 * mlp()['wi_0/kernel'] + 5
  key = jax.random.key(0)
  x, y = (
    np.asarray(expert_init.drop_upcycle(key, name, dense, E, share=1.0))
    for name in ('wi_0/kernel', 'wi_1/kernel')
  )
  np.testing.assert_allclose(x.mean((1, 2)), dense.mean(), rtol=0.02)
  np.testing.assert_allclose(x.std((1, 2)), dense.std(), rtol=0.1)
  drawn = np.concatenate([x.reshape(E, -1), y.reshape(E, -1)])
  assert np.abs(np.corrcoef(drawn) - np.eye(2 * E)).max() < 0.1


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
