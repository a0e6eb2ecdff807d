# SPDX-License-Identifier: Apache-2.0
"""Routers: against T5X's numbers, and properties that any router has.

A new router is tested by adding it to ROUTERS.
"""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import golden
from upcycle import routing

# Every router with the options that change its placement: the properties below
# hold for all of them.
ROUTERS = {
  'expert_choice': routing.expert_choice,
  'top_1': functools.partial(routing.top_k, k=1),
  'top_2': routing.top_k,
  'top_3_by_token': functools.partial(routing.top_k, k=3, priority='token'),
  'top_2_batch_priority': functools.partial(routing.top_k, batch_priority=True),
  'top_2_batch_priority_by_token': functools.partial(
    routing.top_k, batch_priority=True, priority='token'
  ),
  'dropless': routing.dropless,
}
# The same with noise, named after the router that they are without a key.
NOISY = {
  f'{name}_noisy': functools.partial(ROUTERS[name], noise_std=1.0)
  for name in ('expert_choice', 'top_1', 'top_2')
}
ROUTERS |= NOISY
CAUSAL = {
  'top_1': functools.partial(routing.top_k, k=1, causal=True),
  'top_2': functools.partial(routing.top_k, causal=True),
  'top_2_renormalized': functools.partial(
    routing.top_k, causal=True, renormalize=True
  ),
}
SETTINGS = settings(max_examples=20, deadline=None, derandomize=True)
every_router = pytest.mark.parametrize(
  'router', ROUTERS.values(), ids=ROUTERS.keys()
)
# Noise is drawn expert by expert, so it gives them an order.
quiet_router = pytest.mark.parametrize(
  'router',
  [router for name, router in ROUTERS.items() if name not in NOISY],
  ids=[name for name in ROUTERS if name not in NOISY],
)

T5X, _ = golden('t5x_routers')
CASES = sorted({key.split('/')[0] for key in T5X if '/dispatch' in key})


def parse(case):
  """('b', router, capacity) of a case 'b.tc_masked.top2.bpr1.pad0.cap4'."""
  inputs, kind, *options, cap = case.split('.')
  capacity = int(cap.removeprefix('cap'))
  if kind == 'ec':
    return inputs, routing.expert_choice, capacity
  router = functools.partial(
    routing.top_k,
    k=int(options[0].removeprefix('top')),
    batch_priority='bpr1' in options,
    priority='choice',
  )
  return inputs, router, capacity


def t5x_masks(case, capacity):
  """T5X's (dispatch, combine), of indices for its scatter routers."""
  if f'{case}/dispatch_mask' in T5X:
    return T5X[f'{case}/dispatch_mask'], T5X[f'{case}/combine_array']
  indices = T5X[f'{case}/dispatch_indices']
  weights = T5X[f'{case}/combine_weights']
  G, S, K, _ = indices.shape
  E = T5X[f'inputs/{case[0]}/kernel'].shape[1]
  combine = np.zeros((G, S, E, capacity), np.float32)
  dispatch = np.zeros(combine.shape, bool)
  for g, s, k in np.ndindex(G, S, K):
    e, c = indices[g, s, k]
    if c < capacity:
      combine[g, s, e, c] = weights[g, s, k]
      dispatch[g, s, e, c] = True
  return dispatch, combine


@pytest.mark.parametrize('case', CASES)
def test_agrees_with_t5x(case):
  name, router, capacity = parse(case)
  tokens, kernel = T5X[f'inputs/{name}/tokens'], T5X[f'inputs/{name}/kernel']
  S = tokens.shape[1]

  dispatch, combine = t5x_masks(case, capacity)
  # The golden gradients are those of sum(combine * R). Scatter routers' arrays
  # have the shape of choices, and so has their R.
  if f'{case}/combine_array' in T5X:
    R = np.random.RandomState(7).randn(*combine.shape)
  else:
    R = np.random.RandomState(7).randn(*T5X[f'{case}/combine_weights'].shape)
    R = scatter_cotangent(case, R, combine.shape)

  def route(tokens, kernel):
    routed = router(jnp.einsum('gsm,me->gse', tokens, kernel), capacity)
    ours = routed.masks(S)
    aux = routed.aux.get('load_balance', jnp.float32(0))
    losses = {
      'combine': jnp.sum(ours[1] * R.astype(np.float32)),
      'aux': aux,
      'z': routed.aux['z'],
    }
    return losses, (losses, ours)

  gradients, (losses, ours) = jax.jit(jax.jacrev(route, (0, 1), has_aux=True))(
    tokens, kernel
  )
  np.testing.assert_array_equal(ours[0], dispatch)
  np.testing.assert_allclose(ours[1], combine, rtol=1e-5, atol=1e-6)
  for name, key in (('aux', 'auxiliary_loss'), ('z', 'router_z_loss')):
    np.testing.assert_allclose(losses[name], T5X[f'{case}/{key}'], rtol=1e-5)
  for loss, grads in gradients.items():
    for grad, of in zip(grads, ('tokens', 'kernel'), strict=True):
      key = f'{case}/grad_{loss}_{of}'
      if key in T5X:
        np.testing.assert_allclose(
          grad, T5X[key], rtol=1e-4, atol=1e-5, err_msg=key
        )


def scatter_cotangent(case, R, shape):
  """R over choices [G, S, K], laid out over slots."""
  indices = T5X[f'{case}/dispatch_indices']
  out = np.zeros(shape, np.float32)
  for g, s, k in np.ndindex(R.shape):
    e, c = indices[g, s, k]
    if c < shape[-1]:
      out[g, s, e, c] = R[g, s, k]
  return out


# (G, S, E, C): few, so that each is compiled once; capacity may exceed S.
sizes = st.sampled_from(
  [(1, 1, 3, 1), (2, 7, 4, 3), (1, 9, 6, 1), (2, 5, 3, 8)]
)


@functools.cache
def compiled(router, C):
  """Two routings at once, for compiling takes longest: plain, renormalized."""

  def both(logits, mask, key):
    options = {'mask': mask, 'key': key}
    plain = router(logits, C, **options)
    return plain, router(logits, C, renormalize=True, **options)

  return jax.jit(both)


def make(seed, size, masked=0.3):
  G, S, E, C = size
  rng = np.random.RandomState(seed)
  logits = jnp.asarray(2 * rng.randn(G, S, E), jnp.float32)
  key = jax.random.key(seed)
  return logits, C, jnp.asarray(rng.rand(G, S) >= masked), key


@every_router
@SETTINGS
@given(seed=st.integers(0, 10**6), size=sizes)
def test_slots(router, seed, size):
  logits, C, mask, key = make(seed, size)
  (G, S, E), slots = logits.shape, min(C, logits.shape[1])
  routed = compiled(router, C)(logits, mask, key)[0]
  dispatch, combine = routed.masks(S)
  assert dispatch.sum(1).max() <= 1, 'a slot holds two tokens'
  assert dispatch.sum(3).max() <= 1, 'an expert takes a token twice'
  assert not dispatch[~mask].any(), 'padding took a slot'
  assert not combine[~mask].any()
  if isinstance(routed, routing.Routing):  # Ragged rows are all filled
    assert routed.token.shape == routed.weight.shape == (G, E, slots)
    filled = np.asarray(routed.token) < S
    assert not np.asarray(routed.weight)[~filled].any()
  assert ((np.asarray(combine) > 0) <= np.asarray(dispatch)).all()
  assert all(np.isfinite(x).all() for x in routed.metrics.values())
  assert all(np.isfinite(x) for x in routed.aux.values())


@quiet_router
@SETTINGS
@given(seed=st.integers(0, 10**6), size=sizes)
def test_experts_have_no_order(router, seed, size):
  logits, C, mask, key = make(seed, size)
  S, E = logits.shape[1:]
  permutation = np.random.RandomState(seed + 1).permutation(E)
  first, _ = compiled(router, C)(logits, mask, key)
  second, _ = compiled(router, C)(logits[..., permutation], mask, key)
  np.testing.assert_allclose(
    first.masks(S)[1][:, :, permutation], second.masks(S)[1], rtol=1e-6
  )
  for name, value in first.aux.items():
    np.testing.assert_allclose(value, second.aux[name], rtol=1e-5)


@every_router
@SETTINGS
@given(seed=st.integers(0, 10**6), size=sizes)
def test_padding_is_nowhere(router, seed, size):
  logits, C, mask, key = make(seed, size)
  noise = 5 * jax.random.normal(jax.random.key(seed), logits.shape)
  first = compiled(router, C)(logits, mask, key)
  logits = jnp.where(mask[..., None], logits, noise)
  second = compiled(router, C)(logits, mask, key)
  jax.tree.map(np.testing.assert_array_equal, first, second)


@every_router
@SETTINGS
@given(seed=st.integers(0, 10**6), size=sizes)
def test_renormalized_weights_sum_to_one(router, seed, size):
  logits, C, mask, key = make(seed, size)
  S = logits.shape[1]
  routed = compiled(router, C)(logits, mask, key)[1]
  dispatch, combine = routed.masks(S)
  covered = np.asarray(dispatch.any((2, 3)))
  total = np.asarray(combine.sum((2, 3)))
  np.testing.assert_allclose(total, covered, rtol=1e-5)


@pytest.mark.parametrize('name', ['expert_choice', 'top_2', 'dropless'])
def test_room_is_a_capacity_of_a_group(name):
  """Slots beyond a group's room are empty, the others as if it were all."""
  router = ROUTERS[name]
  S, E, C = 9, 4, 4
  logits = jax.random.normal(jax.random.key(0), (1, S, E))
  groups = jnp.repeat(logits, 2, axis=0)

  @jax.jit
  def route(groups, logits):
    room = jnp.array([1, 3])
    bounded = router(groups, C, room=room, renormalize=True)
    less = [router(logits, r, renormalize=True) for r in (1, 3)]
    return bounded, *(routed.masks(S) for routed in (bounded, *less))

  bounded, masks, *less = route(groups, logits)
  for g, alone in enumerate(less):
    for ours, theirs in zip(masks, alone, strict=True):
      np.testing.assert_allclose(ours[g].sum(-1), theirs[0].sum(-1), rtol=1e-6)
  if isinstance(bounded, routing.Routing):
    assert not (bounded.token[0, :, 1:] < S).any()
    filled = (bounded.token < S).sum() / (E * 4)
    np.testing.assert_allclose(bounded.metrics['usage'], filled, rtol=1e-6)


@every_router
def test_gradients_are_finite_where_everything_is_masked(router):
  logits, mask = jnp.zeros((2, 4, 3)), jnp.zeros((2, 4), bool)

  def total(logits):
    key = jax.random.key(0)
    routed = router(logits, 2, mask=mask, renormalize=True, key=key)
    return routed.weight.sum() + sum(routed.aux.values())

  assert np.isfinite(jax.jit(jax.grad(total))(logits)).all()


@every_router
def test_renormalized_gradients_are_finite_for_large_logits(router):
  def total(logits):
    key = jax.random.key(0)
    weight = router(logits, 2, renormalize=True, key=key).weight
    return jnp.sum(weight * jnp.arange(1.0, 3.0))

  rng = np.random.RandomState(0)
  value_and_grad = jax.jit(jax.value_and_grad(total))
  for size in (1.0, 45.0, 130.0, 1e4):
    logits = jnp.asarray(size * rng.randn(2, 6, 4), jnp.float32)
    value, grad = value_and_grad(logits)
    assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize('name', ROUTERS)
def test_the_key_decides_the_noise(name):
  logits, C, mask, key = make(0, (2, 7, 4, 3), masked=0.0)
  # Tokens that all but tie: noise decides where they go.
  route = functools.partial(compiled(ROUTERS[name], C), logits / 100, mask)
  first, again, other = route(key), route(key), route(jax.random.key(1))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  same = np.array_equal(first[0].token, other[0].token)
  assert same == (name not in NOISY), 'other keys, other noise'


@pytest.mark.parametrize('name', NOISY)
def test_without_a_key_there_is_no_noise(name):
  logits, C, mask, key = make(0, (2, 7, 4, 3))
  noisy = compiled(ROUTERS[name], C)(logits, mask, None)
  quiet = compiled(ROUTERS[name.removesuffix('_noisy')], C)(logits, mask, key)
  jax.tree.map(np.testing.assert_array_equal, noisy, quiet)


def test_losses_are_means_over_the_groups_that_have_tokens():
  logits, noise = jax.random.normal(jax.random.key(0), (2, 3, 6, 4))
  mask = jnp.ones((3, 6), bool).at[1].set(False).at[0, 2:].set(False)

  @jax.jit
  def losses(logits, noise, mask):
    noisy = logits + noise / 4
    probs = jax.nn.softmax(noisy)
    chosen = probs >= jnp.sort(probs, axis=-1)[..., -2:-1]
    chosen = (chosen & mask[..., None]).astype(jnp.float32)
    return jnp.stack(
      [
        routing.load_balance_loss(probs, chosen, mask),
        routing.importance_loss(probs, mask),
        routing.load_loss(logits, noisy, chosen, 0.25, mask),
      ]
    )

  # Groups 0 and 2 alone, group 0 without the tokens that are masked.
  short = losses(logits[:1, :2], noise[:1, :2], mask[:1, :2])
  full = losses(logits[2:], noise[2:], mask[2:])
  np.testing.assert_allclose(
    losses(logits, noise, mask), (short + full) / 2, rtol=1e-5
  )


def test_full_capacity_takes_every_token():
  logits = jax.random.normal(jax.random.key(0), (2, 6, 4))
  routed = routing.expert_choice(logits, 6)
  np.testing.assert_allclose(
    routed.masks(6)[1].sum(3), jax.nn.softmax(logits), rtol=1e-6
  )


def test_dropless_drops_nothing():
  """Also where all tokens choose the same experts."""
  logits = jax.random.normal(jax.random.key(0), (2, 6, 4))
  logits = logits.at[..., :2].add(10.0)
  mask = jnp.ones((2, 6), bool).at[1, 4:].set(False)
  routed, full = jax.jit(
    lambda logits: (
      routing.dropless(logits, 1, mask=mask),
      routing.top_k(logits, 6, mask=mask),
    )
  )(logits)
  np.testing.assert_array_equal(routed.sizes, [10, 10, 0, 0])
  np.testing.assert_array_equal(routed.token[:10], np.arange(10))
  np.testing.assert_array_equal(routed.token[20:], [10, 10, 11, 11])
  for ours, theirs in zip(routed.masks(6), full.masks(6), strict=True):
    np.testing.assert_array_equal(ours.sum(3), theirs.sum(3))
  assert routed.metrics.keys() == full.metrics.keys()
  for name in full.metrics.keys() - {'usage'}:
    np.testing.assert_allclose(
      routed.metrics[name], full.metrics[name], 1e-6, 1e-6, err_msg=name
    )


@pytest.mark.parametrize('name', CAUSAL)
def test_no_token_sees_a_later_one(name):
  """With experts that overflow, by perturbation of every later token."""
  G, S, E, C = 2, 12, 3, 2
  logits = 2 * jax.random.normal(jax.random.key(1), (G, S, E))
  route = jax.jit(lambda x: CAUSAL[name](x, C).masks(S))
  before = route(logits)
  assert before[0].sum() < G * S, 'no expert overflows: the test is idle'
  for t in range(1, S):
    changed = logits.at[:, t:].set(-logits[:, t:])
    after = route(changed)
    for x, y in zip(before, after, strict=True):
      np.testing.assert_array_equal(x[:, :t].sum(3), y[:, :t].sum(3))


def test_priority_by_choice_sees_later_tokens():
  """The reference order does: this is why it is not a decoder's default."""
  # Both choose expert 0 first or second; only one of them has room.
  logits = jnp.asarray([[[1.0, 2.0, 0.0], [2.0, 0.0, 1.0]]])
  by_choice = routing.top_k(logits, 1, priority='choice').masks(2)[0]
  by_token = routing.top_k(logits, 1, priority='token').masks(2)[0]
  assert not by_choice[0, 0, 0].any() and by_choice[0, 1, 0].any()
  assert by_token[0, 0, 0].any() and not by_token[0, 1, 0].any()


def test_batch_priority_serves_the_surest_first():
  logits = jnp.asarray([[[1.0, 0.0], [9.0, 0.0], [5.0, 0.0]]])
  routed = routing.top_k(logits, 2, k=1, batch_priority=True)
  np.testing.assert_array_equal(routed.token[0, 0], [1, 2])


def test_metrics_of_a_known_routing():
  logits = jnp.log(jnp.asarray([[[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]]]))
  metrics = routing.top_k(logits, 2, k=1).metrics
  expected = {
    'load': [1.0, 0.0],
    'coverage': 2 / 3,
    'dropped': 1 / 3,
    'usage': 2 / 4,
    'confidence': (0.9 + 0.6) / 2,
    'scale': (0.9 + 0.6) / 3,
  }
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  'S, E, factor, options, slots',
  [
    (512, 32, 2.0, {}, 32),
    (16, 4, 0.25, {'minimum': 4}, 4),
    (16, 4, 1.0, {'multiple_of': 3}, 6),
    (6, 4, 4.0, {}, 6),
    (3, 4, 8.0, {'minimum': 4}, 3),
    (10, 64, 0.1, {}, 1),
    (10, 4, 1.0, {}, 2),
    (10, 4, 1.0, {'rounding': 'ceil'}, 3),
    (49, 8, 1.05, {'rounding': 'ceil', 'multiple_of': 4}, 8),
  ],
)
def test_capacity(S, E, factor, options, slots):
  assert routing.capacity(S, E, factor, **options) == slots


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda x: routing.expert_choice(x, 1, causal=True), 'future'),
    (lambda x: routing.top_k(x, 1, k=4), 'k=4 of 3'),
    (lambda x: routing.top_k(x, 1, k=0), 'k=0 of 3'),
    (lambda x: routing.dropless(x, 1, k=4), 'k=4 of 3'),
    (lambda x: routing.top_k(x, 1, priority='left'), 'left'),
    (lambda x: routing.top_k(x, 1, batch_priority=True, causal=True), 'Batch'),
    (lambda x: routing.top_k(x, 1, noise_std=-1.0), 'noise_std.*not -1'),
    (lambda x: routing.expert_choice(x, 1, noise_std=-1.0), 'noise_std'),
    (lambda x: routing.capacity(8, 0, 1.0), '0 experts'),
    (lambda x: routing.capacity(8, 2, 1.0, rounding='up'), 'up'),
    (lambda x: routing.capacity(8, 2, -1.0), 'factor -1'),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call(jnp.zeros((1, 4, 3)))
