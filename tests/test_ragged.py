# SPDX-License-Identifier: Apache-2.0
"""Experts with unequal numbers of rows, in both forms, and in a layer."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_experts import SHAPES, E, F, G, M, S, expert_parameters, gated
from upcycle import ragged, routing
from upcycle.models import moe
from upcycle.models.mlp import Mlp

K = 2
R = G * S * K
# Even; all in one, some in none, rows in no expert, none at all.
SIZES = ([12, 12, 12], [0, 36, 0], [5, 0, 31], [7, 1, 20], [0, 0, 0])


@pytest.fixture(params=sorted(ragged.FORMS))
def form(request, monkeypatch):
  """Has this platform run each form."""
  used = []

  def noted(which):
    def run(*args):
      used.append(which)
      return form[which](*args)

    return run

  form = ragged.FORMS[request.param]
  monkeypatch.setitem(ragged.FORMS, 'cpu', (noted(0), noted(1)))
  yield request.param
  assert {*used} == {0, 1}, 'JAX has cached the other form'


def inputs(kernels, biased, dtype):
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  mlp = expert_parameters(draw, kernels, biased)
  token = jnp.asarray(rng.permutation(R) // K, jnp.int32)
  keep = jnp.asarray(rng.random((E, 1, F)) < 0.6, dtype)
  return mlp, draw(G, S, M), draw(R), keep, token


def reference(activate, mlp, x, weight, keep, token, sizes):
  """Every row by every expert, as XLA differentiates it."""
  counts = jnp.append(sizes, R - sizes.sum())
  own = jnp.repeat(jnp.arange(E + 1), counts, total_repeat_length=R)
  own = jax.nn.one_hot(own, E, dtype=x.dtype)
  rows = x.reshape(-1, M)[token]
  biases = mlp.bi or (jnp.zeros((E, F)),) * len(mlp.wi)
  pre = [
    jnp.einsum('rm,emf->ref', rows, w) + b
    for w, b in zip(mlp.wi, biases, strict=True)
  ]
  y = jnp.einsum('ref,efm->rem', activate(*pre) * keep[:, 0], mlp.wo)
  y = y if mlp.bo is None else y + mlp.bo
  y = jnp.einsum('rem,re,r->rm', y, own, weight)
  return jnp.zeros((G * S, M), x.dtype).at[token].add(y).reshape(x.shape)


@pytest.mark.parametrize('shape', SHAPES)
def test_values_and_gradients_are_the_references(shape, form):
  activate = gated(SHAPES[shape][0])

  def ours(mlp, x, weight, keep, token, sizes):
    y = ragged.apply(activate, mlp, x, token, weight, sizes, keep)
    return jnp.sum(y * jnp.cos(jnp.arange(x.size)).reshape(x.shape)), y

  def theirs(*args):
    y = reference(activate, *args)
    return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

  with jax.enable_x64(True):
    arguments = inputs(*SHAPES[shape], jnp.float64)
    run, expected = (
      jax.jit(jax.grad(f, (0, 1, 2, 3), has_aux=True)) for f in (ours, theirs)
    )
    for sizes in SIZES:
      sizes = jnp.asarray(sizes, jnp.int32)
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
        run(*arguments, sizes),
        expected(*arguments, sizes),
      )


def test_gradients_have_the_dtype_of_what_they_are_of():
  """In bfloat16, with float32 parameters and weights."""
  mlp, x, weight, keep, token = inputs(2, True, jnp.float32)
  sizes = jnp.asarray(SIZES[3], jnp.int32)

  def run(mlp, x, weight, keep):
    y = ragged.apply(
      gated(2), mlp, x.astype(jnp.bfloat16), token, weight, sizes, keep
    )
    assert y.dtype == jnp.bfloat16
    return jnp.sum(y.astype(jnp.float32))

  grads = jax.eval_shape(jax.grad(run, (0, 1, 2, 3)), mlp, x, weight, keep)
  assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_each_platform_gets_its_form(platform):
  mlp, x, weight, _, token = inputs(2, False, jnp.float32)

  def apply(*args):
    return ragged.apply(gated(2), *args)

  sizes = jnp.asarray(SIZES[0], jnp.int32)
  traced = jax.jit(apply).trace(mlp, x, token, weight, sizes)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert ('stablehlo.while' in text) == (platform == 'cpu')
  assert ('ragged_dot' in text) == (platform == 'tpu')


@pytest.mark.parametrize('rows, E', [(1, 1), (2, 64), (36, 3), (8192, 32)])
def test_windows(rows, E):
  windows = ragged._windows(rows, E)
  assert windows[-1] == rows and len(windows) <= 24
  assert list(windows) == sorted({*windows})
  near = [n for n in windows if rows / E / 2 <= n <= 2 * rows / E]
  assert all(b <= math.ceil(1.2 * a) for a, b in itertools.pairwise(near))


def layer(router, dropout=0.0, causal=False, broadcast=True, **options):
  config = moe.MoeConfig(
    num_experts=4,
    router=router,
    expert_dropout=dropout,
    router_std=1.0,
    capacity_factor=4.0,
    **options,
  )

  def expert(rate, name):
    return Mlp(
      8,
      ('gelu', 'linear'),
      rate,
      name=name,
      use_bias=True,
      broadcast_dropout=broadcast,
    )

  return moe.MoeLayer(config, expert, causal)


def parameters(module, x):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape) / 2, p.dtype),
    jax.eval_shape(module.init, jax.random.key(0), x),
  )


def test_a_layer_is_that_of_top_k_with_room_for_all():
  """With padding, groups to fill up, noise, dropout, losses, gradients."""
  x = jax.random.normal(jax.random.key(0), (3, 7, M))
  mask = jnp.arange(7) < jnp.asarray([[7], [5], [2]])

  def run(router):
    router = functools.partial(router, noise_std=1.0, k=3, renormalize=True)
    aux = (('load_balance', 1.0), ('load', 1.0), ('z', 1.0))
    module = layer(router, 0.5, group_size=6, aux_weights=aux)
    assert moe.group_shape(3, 7, module.config) == (4, 6)
    params = parameters(module, x)['params']

    def total(params, x):
      y, sown = module.apply(
        {'params': params},
        x,
        mask,
        False,
        rngs={'dropout': jax.random.key(2)},
        mutable=['losses', 'metrics'],
      )
      loss = sum(jax.tree.leaves(sown['losses']))
      return jnp.sum(y**2) + loss, (y, sown)

    return jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, x)

  (grads, (y, sown)), (their_grads, (their_y, theirs)) = map(
    run, (routing.dropless, routing.top_k)
  )
  assert theirs['metrics'].pop('usage') != sown['metrics'].pop('usage')
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    (grads, y, sown),
    (their_grads, their_y, theirs),
  )


def test_a_token_sees_no_other():
  router = functools.partial(routing.dropless, renormalize=True)
  module = layer(router, causal=True)
  x = jax.random.normal(jax.random.key(0), (2, 6, M))
  params = parameters(module, x)
  apply = jax.jit(module.apply)
  before = apply(params, x)
  for t in range(6):
    after = apply(params, x.at[:, t].set(-x[:, t]))
    others = np.arange(6) != t
    np.testing.assert_allclose(
      before[:, others], after[:, others], rtol=1e-5, atol=1e-6
    )
    assert np.abs(before[:, t] - after[:, t]).max() > 1e-3


def test_nothing_grows_with_groups_times_experts():
  """A one-hot form's arrays have G * S * E * S elements."""
  module = layer(routing.dropless, group_size=128)
  x = jnp.zeros((2, 128, M))
  params = jax.eval_shape(module.init, jax.random.key(0), x)
  compiled = jax.jit(module.apply).lower(params, x).compile().as_text()
  shapes = re.findall(r'\b[a-z]+\d+\[([\d,]+)\]', compiled)
  sizes = [math.prod(map(int, shape.split(','))) for shape in shapes]
  rows = 2 * 128 * 2
  assert rows * 8 <= max(sizes) <= 2 * rows * 8


def test_a_model_checks_and_foresees_the_router():
  config = layer(routing.dropless, aux_weights=(('load_balance', 1.0),)).config
  for causal in (False, True):
    assert list(moe.sparse_layers(config, (1,), 2, causal=causal)) == [1]
    scale = moe.expected_scale(config, M, causal=causal)
    assert 2 / 4 < scale < 1


def test_refuses_dropout_of_every_row_by_itself():
  module = layer(routing.dropless, 0.5, broadcast=False)
  x = jnp.zeros((1, 4, M))
  params = jax.eval_shape(module.init, jax.random.key(0), x)

  def run(params):
    rngs = {'dropout': jax.random.key(1)}
    return module.apply(params, x, None, False, rngs=rngs)

  with pytest.raises(ValueError, match='expert_dropout to 0'):
    jax.eval_shape(run, params)
