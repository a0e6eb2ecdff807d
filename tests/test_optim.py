# SPDX-License-Identifier: Apache-2.0
"""Optimizers against T5X's and vmoe's numbers, and against plain NumPy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import golden
from upcycle import optim

GOLDEN, _ = golden('optim')
HINT = (
  'Adafactor does not do what T5X does: optimizer state of T5X checkpoints '
  'would be misread. Mend upcycle/optim.py, not tests/golden/optim.npz.'
)
# Shape, path, first step and options of what T5X computed. Draw the inputs of
# case i by `draw(i, shape)`.
T5X_CASES = {
  'wide': ((12, 20), 'kernel', 0, {}),
  'tall': ((20, 12), 'kernel', 0, {}),
  'square': ((16, 16), 'kernel', 0, {}),
  'vector': ((30,), 'scale', 0, {}),
  'small': ((6, 20), 'kernel', 0, {}),
  'momentum': ((12, 20), 'kernel', 0, {'beta1': 0.9}),
  'decay': ((12, 20), 'kernel', 0, {'weight_decay': 0.01}),
  'late': ((12, 20), 'kernel', 10**6, {}),
  'offset': ((12, 20), 'kernel', 10**6, {'step_offset': 10**6}),
  'experts_wide': ((3, 12, 20), 'mlp/expert/wi_0/kernel', 0, {}),
  'experts_tall': ((3, 20, 12), 'Moe/Mlp/Dense_1/kernel', 0, {}),
  'expert_bias': ((3, 20), 'Moe/Mlp/Dense_0/bias', 0, {}),
}


def draw(seed, shape):
  """A parameter and three gradients of very different sizes."""
  rng = np.random.RandomState(seed)
  sizes = (0.05, 1e-3, 1.0, 1e-2)
  return [np.float32(rng.randn(*shape) * size) for size in sizes]


def nest(path, x):
  for name in reversed(path.split('/')):
    x = {name: x}
  return x


def run(tx, path, param, grads, step=0):
  """The parameter and the optimizer state after a step for each gradient."""
  params = nest(path, jnp.asarray(param))
  state = optim.with_step(tx.init(params), step)
  for g in grads:
    updates, state = jax.jit(tx.update)(
      nest(path, jnp.asarray(g)), state, params
    )
    params = optax.apply_updates(params, updates)
  return jax.tree.leaves(params)[0], state


def slots_of(state, path):
  node = state.slots
  for name in path.split('/'):
    node = node[name]
  return node


def assert_close(a, b):
  """Equal up to a millionth of the largest."""
  np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())


def rms(x):
  return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize('case', T5X_CASES)
def test_adafactor_equals_t5x(case):
  shape, path, step, options = T5X_CASES[case]
  param, *grads = draw(list(T5X_CASES).index(case), shape)
  tx = optim.adafactor(0.01, min_dim_size_to_factor=8, **options)
  after, state = run(tx, path, param, grads, step)
  want = {
    key.split('/')[-1]: value
    for key, value in GOLDEN.items()
    if key.startswith(f'adafactor/{case}/')
  }
  moved = np.abs(want['param'] - param).max()
  error = np.abs(after - want.pop('param')).max()
  assert error < 1e-5 * moved, HINT
  slots = slots_of(state, path)
  assert slots.keys() == want.keys(), HINT
  for name, value in want.items():
    np.testing.assert_allclose(
      slots[name], value, rtol=2e-6, atol=1e-7 * moved, err_msg=HINT
    )


def numpy_adafactor(param, grads, lr=0.01, factor=128, clip=1.0):
  """The paper's Algorithm 4 and 5 for one array, in float64."""
  p, v = np.float64(param), 0.0
  factored = p.ndim == 2 and min(p.shape) >= factor
  for t, g in enumerate(grads, 1):
    g = np.float64(g)
    keep = 1 - t**-0.8
    v = keep * v + (1 - keep) * (g**2 + 1e-30)
    second = v
    if factored:
      second = np.outer(v.sum(1), v.sum(0)) / v.sum()
    u = g / np.sqrt(second)
    u /= max(1, np.sqrt(np.mean(u**2)) / clip)
    p = p - lr * max(1e-3, np.sqrt(np.mean(p**2))) * u
  return p


@pytest.mark.parametrize(
  'shape',
  [(128, 160), (160, 128), (130, 130), (127, 300), (300,), (), (2, 140, 150)],
  ids=str,
)
def test_adafactor_equals_numpy(shape):
  param, *grads = draw(7, shape)
  if len(shape) == 3:
    path = 'encoder/layers_1/mlp/expert/wo/kernel'
    want = np.stack(
      [numpy_adafactor(p, [g[e] for g in grads]) for e, p in enumerate(param)]
    )
  else:
    path = 'encoder/layers_1/mlp/wo/kernel'
    want = numpy_adafactor(param, grads)
  after, _ = run(optim.adafactor(0.01), path, param, grads)
  np.testing.assert_allclose(after, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('shape', [(140, 160), (160, 140), (40, 50), (60,)])
@pytest.mark.parametrize('options', [{}, {'beta1': 0.9}], ids=str)
def test_experts_together_equal_experts_alone(shape, options):
  param, *grads = draw(3, (4, *shape))
  # Experts differ in the sizes of weights and gradients by powers of ten.
  size = np.float32(10.0 ** -np.arange(4)).reshape(4, *(1 for _ in shape))
  param, grads = param * size, [g * size for g in grads]
  tx = optim.adafactor(0.01, **options)
  path = 'decoder/layers_3/mlp/expert/wi_1/kernel'
  after, state = run(tx, path, param, grads)
  for e in range(4):
    alone, alone_state = run(tx, 'kernel', param[e], [g[e] for g in grads])
    assert_close(after[e], alone)
    for name, value in slots_of(alone_state, 'kernel').items():
      assert_close(slots_of(state, path)[name][e], value)


def test_more_experts_than_rows_and_columns():
  param, *grads = draw(3, (24, 12, 16))
  tx = optim.adafactor(0.01, min_dim_size_to_factor=8)
  after, state = run(tx, 'expert/kernel', param, grads)
  assert slots_of(state, 'expert/kernel')['v_row'].shape == (24, 12)
  alone, _ = run(tx, 'kernel', param[17], [g[17] for g in grads])
  assert_close(after[17], alone)


def test_scanned_layers_use_the_same_table():
  param, *grads = draw(3, (2, 3, 130, 140))
  rules = ((r'layers/.*/expert/.*', 2), (r'layers/.*', 1))
  tx = optim.adafactor(0.01, batch_axes=rules)
  after, state = run(tx, 'layers/mlp/expert/wo', param, grads)
  slots = slots_of(state, 'layers/mlp/expert/wo')
  assert slots['v_row'].shape == (2, 3, 130)
  alone, _ = run(tx, 'wo', param[1, 2], [g[1, 2] for g in grads])
  assert_close(after[1, 2], alone)


@pytest.mark.parametrize('shape', [(130, 140), (30,)], ids=str)
def test_zero_gradients_move_nothing(shape):
  param, *_ = draw(3, shape)
  after, _ = run(optim.adafactor(0.01), 'x', param, [0 * param] * 2, 1000)
  np.testing.assert_array_equal(after, param)


def test_zero_parameters_move_by_epsilon2():
  _, g, *_ = draw(3, (30,))
  after, _ = run(optim.adafactor(0.01, epsilon2=0.1), 'bias', 0 * g, [g])
  np.testing.assert_allclose(after, -0.001 * np.sign(g), rtol=1e-5)


def test_slots_are_those_of_vmoe():
  """One kind of slot a parameter, where vmoe keeps (1,) for the others."""
  for shapes in json.loads(str(GOLDEN['vmoe_slot_shapes'])).values():
    want, params = {}, {}
    for key, shape in shapes.items():
      _, name, path = key.split('/', 2)
      if shape != [1]:
        want.setdefault(path, {})[name] = tuple(shape)
    for path, slots in want.items():
      # The shape of the parameter: row axes, and the last of the columns.
      row, col = slots.get('v_row'), slots.get('v_col')
      params[path] = jnp.zeros(slots.get('v') or (*row, col[-1]))
      if 'Dense_1/kernel' in path:
        params[path] = jnp.zeros((*col, row[-1]))
    state = optim.adafactor(0.1, min_dim_size_to_factor=32).init(params)
    assert jax.tree.map(jnp.shape, state.slots) == want


def test_fresh_slots_at_a_late_step_are_bounded_by_the_clipping_alone():
  param, g, *_ = draw(0, (128, 130))
  unscaled = {'multiply_by_parameter_scale': False}
  raw = unscaled | {'clipping_threshold': None}
  step = 10**6

  def moved(**options):
    tx = optim.adafactor(1.0, **options)
    return rms(run(tx, 'kernel', param, [g], step)[0] - param)

  first = rms(run(optim.adafactor(1.0, **raw), 'kernel', param, [g])[0] - param)
  assert moved(**raw) / first == pytest.approx((step + 1) ** 0.4, rel=2e-3)
  assert moved(**raw) / first == pytest.approx(251, rel=5e-3)
  assert moved(**unscaled) == pytest.approx(1, rel=1e-4)
  assert moved(**raw, step_offset=step) == pytest.approx(first, rel=1e-4)
  assert moved() == pytest.approx(rms(param), rel=1e-4)


def test_schedule_is_evaluated_at_the_global_step():
  param, g, *_ = draw(0, (30,))
  move = {}
  for step in (0, 40_000):
    tx = optim.adafactor(optim.inverse_sqrt(), step_offset=step)
    after, state = run(tx, 'scale', param, [g], step)
    move[step] = rms(after - param)
    assert state.count == step + 1
  assert move[0] / move[40_000] == pytest.approx(2, rel=1e-4)


def test_adafactor_needs_no_memory_of_the_parameters_size():
  params = {'mlp': {'expert': {'kernel': jnp.ones((8, 256, 512))}}}
  tx = optim.adafactor(0.01)
  state = tx.init(params)

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
  memory = compiled.compile().memory_analysis()
  assert memory.temp_size_in_bytes < 0.05 * 8 * 256 * 512 * 4


def test_statistics_of_bfloat16_gradients_are_float32():
  param, g, *_ = draw(0, (130, 140))
  low = jnp.asarray(g, jnp.bfloat16)
  tx = optim.adafactor(0.01)
  params = {'kernel': jnp.asarray(param)}
  state = tx.init(params)
  mixed = tx.update({'kernel': low}, state, params)
  full = tx.update({'kernel': low.astype(jnp.float32)}, state, params)
  jax.tree.map(np.testing.assert_array_equal, mixed, full)


def test_adafactor_without_parameters_is_refused():
  tx = optim.adafactor(0.01)
  params = {'kernel': jnp.ones((2, 2))}
  with pytest.raises(ValueError, match='needs params'):
    tx.update(params, tx.init(params))


def test_inverse_sqrt():
  schedule = optim.inverse_sqrt()
  for step in (0, 1, 9_999, 10_000, 40_000, 1_000_000):
    want = 1 / np.sqrt(max(step, 10_000))
    assert float(schedule(step)) == pytest.approx(want, rel=1e-6)
  assert float(optim.inverse_sqrt(3.0, 100)(400)) == pytest.approx(0.15)


@pytest.mark.parametrize(
  ('name', 'schedule'),
  [
    ('big_vision_rsqrt', optim.rsqrt(1e-3, 10, 10, total=100, cooldown=20)),
    ('warmup_cosine_decay', optim.cosine(1e-3, 10, 100, end=1e-5)),
  ],
)
def test_schedules_equal_vmoe(name, schedule):
  for step, want in zip(
    GOLDEN['schedule/steps'], GOLDEN[f'schedule/{name}'], strict=True
  ):
    got = float(schedule(int(step)))
    assert got == pytest.approx(want, rel=1e-5, abs=1e-9), (
      f"{name} at step {step} is not vmoe's: mend upcycle/optim.py."
    )


@pytest.mark.parametrize(
  'schedule',
  [
    optim.constant(1e-3),
    optim.inverse_sqrt(),
    optim.rsqrt(1e-3, 0, 10),
    optim.rsqrt(1e-3, 5, 10, 100, 10),
    optim.cosine(1e-3, 5, 100),
  ],
)
def test_schedules_take_ints_and_traced_steps(schedule):
  for step in (0, 7, 99, 2**20):
    value, traced = schedule(step), jax.jit(schedule)(jnp.int32(step))
    assert value.shape == traced.shape == ()
    assert value.dtype == traced.dtype == jnp.float32
    np.testing.assert_allclose(value, traced, rtol=1e-6, atol=1e-12)
    assert value >= 0


def test_rsqrt_without_warmup_starts_at_its_peak():
  assert optim.rsqrt(2.0, 0, 10)(0) == 2
  assert optim.rsqrt(2.0, 0, 10)(30) == pytest.approx(1)


def test_rsqrt_without_cooldown():
  schedule = optim.rsqrt(2.0, 8, 10)
  assert schedule(4) == pytest.approx(1)
  assert schedule(8) == 2
  assert schedule(38) == pytest.approx(1)


@pytest.mark.parametrize(
  ('total', 'cooldown'), [(None, 5), (10, 5), (7, 0)], ids=str
)
def test_rsqrt_refuses_phases_that_do_not_fit(total, cooldown):
  with pytest.raises(ValueError, match='no room for a warmup of 8'):
    optim.rsqrt(1.0, 8, 10, total, cooldown)


def vit_params():
  return {
    'head': {'kernel': jnp.ones((4, 3)), 'bias': jnp.ones(3)},
    'Transformer': {'query': {'kernel': jnp.ones((4, 4))}},
  }


@pytest.mark.parametrize('make', [optim.adamw, optim.sgd])
def test_weight_decay_by_rules_is_decoupled_and_times_the_rate(make):
  params = vit_params()
  rules = (('head/kernel', 3.0), ('.*/kernel', 0.03))
  tx = make(0.1, weight_decay=rules)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
  np.testing.assert_allclose(updates['head']['kernel'], -0.3, rtol=1e-6)
  np.testing.assert_allclose(
    updates['Transformer']['query']['kernel'], -0.003, rtol=1e-6
  )
  assert not updates['head']['bias'].any()


def test_weight_decay_rules_without_a_parameter_are_refused():
  tx = optim.adamw(0.1, weight_decay=(('.*/kernel', 0.1), ('haed/.*', 3.0)))
  with pytest.raises(ValueError, match=r"match no parameter: \['haed"):
    tx.init(vit_params())


def test_gradients_are_clipped_by_their_global_norm():
  params = vit_params()
  grads = jax.tree.map(jnp.ones_like, params)
  tx = optim.sgd(1.0, momentum=0.0, clip_norm=1.0)
  updates, _ = tx.update(grads, tx.init(params), params)
  norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(updates)))
  assert norm == pytest.approx(1, rel=1e-6)


def test_with_step_sets_every_count():
  params = vit_params()
  tx = optim.adamw(optim.inverse_sqrt(1.0, 10), clip_norm=1.0)
  state = optim.with_step(tx.init(params), 400)
  counts = [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
  assert len(counts) == 2
  assert all(x == 400 and x.shape == () for x in counts)
  assert optim.with_step(optim.adafactor(0.1).init(params), 7).count == 7


def test_fresh_adam_moments_keep_their_bias_correction():
  params = vit_params()
  grads = jax.tree.map(jnp.ones_like, params)
  tx = optim.adamw(optim.inverse_sqrt(1.0, 10))
  for keep, first in ((True, 0.05), (False, 0.05 * 0.1 / 0.001**0.5)):
    state = optim.with_step(tx.init(params), 400, keep_adam=keep)
    updates, state = tx.update(grads, state, params)
    found = -float(updates['head']['bias'][0])
    # Where the correction is gone but for 0.999**401.
    assert found == pytest.approx(first, rel=1e-4 if keep else 0.5)
  assert optax.tree_utils.tree_get(state, 'mu') is not None
