# SPDX-License-Identifier: Apache-2.0
"""The experts' forward and backward pass, in both forms, in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upcycle import dispatch, experts, routing

G, S, M, F, E = 2, 9, 6, 5, 3
SHAPES = {
  'gated': (2, False),
  'biased': (1, True),
}
ROUTERS = {
  'expert choice': routing.expert_choice,
  # Leaves slots empty.
  'top-2': functools.partial(routing.top_k, k=2),
}


@functools.cache
def gated(count):
  names = jax.nn.gelu, jax.nn.tanh
  return lambda *pre: math.prod(
    f(p) for f, p in zip(names[:count], pre, strict=True)
  )


@pytest.fixture(params=sorted(experts.FORMS))
def form(request, monkeypatch):
  """Has this platform run each form."""
  name, used = request.param, []

  def noted(which, run):
    def noting(*args):
      used.append(which)
      return run(*args)

    return noting

  passes = tuple(noted(*pair) for pair in enumerate(experts.FORMS[name]))
  monkeypatch.setitem(experts.FORMS, name, passes)
  monkeypatch.setattr(experts, 'cpu_form', lambda *sizes: name)
  yield name
  assert {*used} == {0, 1}, 'JAX has cached the other form'


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield jnp.float64


def expert_parameters(draw, kernels, biased):
  """Of E experts, by draw(*shape)."""
  return experts.Mlp(
    tuple(draw(E, M, F) for _ in range(kernels)),
    tuple(draw(E, F) for _ in range(kernels)) if biased else (),
    draw(E, F, M),
    draw(E, M) if biased else None,
  )


def inputs(kernels, biased, router, dtype):
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  mlp = expert_parameters(draw, kernels, biased)
  mask = jnp.asarray(rng.random((G, S)) < 0.8)
  routed = ROUTERS[router](draw(G, S, E).astype(jnp.float32), 6, mask=mask)
  keep = jnp.asarray(rng.random((E, 1, F)) < 0.6, dtype)
  return mlp, draw(G, S, M), routed, routed.weight.astype(dtype), keep


def reference(activate, mlp, x, routed, weight, keep):
  """By one-hot einsums, as XLA differentiates them."""
  onehot = jax.nn.one_hot(routed.token, S, axis=1, dtype=x.dtype)
  slots = dispatch.dispatch_onehot(x, onehot.astype(bool))
  biases = mlp.bi or (0,) * len(mlp.wi)
  pre = [
    jnp.einsum('gecm,emf->gecf', slots, w) + (b[:, None] if mlp.bi else 0)
    for w, b in zip(mlp.wi, biases, strict=True)
  ]
  h = activate(*pre) * keep
  y = jnp.einsum('gecf,efm->gecm', h, mlp.wo)
  y = y if mlp.bo is None else y + mlp.bo[:, None]
  return dispatch.combine_onehot(y, onehot * weight[:, None])


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('router', ROUTERS)
def test_values_and_gradients_are_the_references(shape, router, form, float64):
  activate = gated(SHAPES[shape][0])
  mlp, x, routed, weight, keep = inputs(*SHAPES[shape], router, float64)
  cotangent = jnp.cos(jnp.arange(x.size, dtype=float64)).reshape(x.shape)

  def ours(mlp, x, weight, keep):
    y = experts.apply(activate, mlp, x, routed.token, weight, keep)
    return jnp.sum(y * cotangent), y

  def theirs(mlp, x, weight, keep):
    y = reference(activate, mlp, x, routed, weight, keep)
    return jnp.sum(y * cotangent), y

  results = [
    jax.jit(jax.grad(f, (0, 1, 2, 3), has_aux=True))(mlp, x, weight, keep)
    for f in (ours, theirs)
  ]
  empty = routed.token == S
  assert router != 'top-2' or empty.any()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
    *results,
  )


def test_gradients_have_the_dtype_of_what_they_are_of(form):
  """In bfloat16, with float32 parameters and weights."""
  mlp, x, routed, weight, _ = inputs(2, True, 'top-2', jnp.float32)

  def total(mlp, x, weight):
    y = experts.apply(
      gated(2), mlp, x.astype(jnp.bfloat16), routed.token, weight, None
    )
    assert y.dtype == jnp.bfloat16
    return jnp.sum(y.astype(jnp.float32))

  grads = jax.jit(jax.grad(total, (0, 1, 2)))(mlp, x, weight)
  exact = jax.grad(
    lambda *a: jnp.sum(
      reference(gated(2), a[0], a[1], routed, a[2], jnp.ones((E, 1, F)))
    ),
    (0, 1, 2),
  )(mlp, x, weight)
  for a, b in zip(*map(jax.tree.leaves, (grads, exact)), strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=0.1, atol=0.1 * float(abs(b).max()))


@pytest.mark.parametrize('shape', SHAPES)
def test_where_all_have_room_an_expert_without_tokens_is_not_read(shape):
  """As in decoding; the expert's numbers would spread otherwise."""
  activate = gated(SHAPES[shape][0])
  mlp, x, _, _, _ = inputs(*SHAPES[shape], 'top-2', jnp.float32)
  logits = jnp.asarray(np.random.default_rng(1).normal(size=(G, S, E)))
  logits = logits.at[..., 1].set(-100.0).astype(jnp.float32)
  routed = routing.top_k(logits, S, k=2)
  want = reference(activate, mlp, x, routed, routed.weight, 1.0)
  mlp = jax.tree.map(lambda w: w.at[1].set(jnp.nan), mlp)
  run = jax.jit(functools.partial(experts.apply, activate))
  found = run(mlp, x, routed.token, routed.weight)
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  'platform, large, form',
  [
    ('cpu', True, 'one by one'),
    ('cpu', False, 'in turn'),
    ('tpu', True, 'at once'),
    ('tpu', False, 'at once'),
  ],
)
def test_which_form(platform, large, form, monkeypatch):
  """Told by its loop, and by the barriers between matmuls."""
  monkeypatch.setattr(experts, 'LARGE_KERNEL', M * F if large else M * F + 1)
  mlp, x, routed, weight, _ = inputs(2, False, 'top-2', jnp.float32)

  @jax.jit
  def apply(mlp, x, weight):
    return experts.apply(gated(2), mlp, x, routed.token, weight, None)

  lowered = apply.trace(mlp, x, weight).lower(lowering_platforms=(platform,))
  text = lowered.as_text()
  assert ('stablehlo.while' in text) == (form == 'one by one')
  assert ('optimization_barrier' in text) == (form == 'in turn')
