# SPDX-License-Identifier: Apache-2.0
"""Optimizer state: one view of all optimizers', expanded to experts."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import golden
from tests.test_t5 import BATCH, ENCODER, TINY
from upcycle import (
  checkpoints,
  expert_init,
  initialize,
  losses,
  optim,
  surgery,
  trees,
)
from upcycle.checkpoints import slots
from upcycle.checkpoints import state as run_state
from upcycle.models import t5

GOLDEN, META = golden('vmoe_train_bits')
HINT = (
  'Moments of a dense run would not reach its experts as in vmoe: mend '
  'upcycle/checkpoints/slots.py, not tests/golden/vmoe_train_bits.npz.'
)
PARAMS = {
  'mlp': {'kernel': jnp.ones((3, 4)), 'mu': jnp.ones((1,))},
  'norm': {'scale': jnp.ones(3)},
}
OPTIMIZERS = {
  'adafactor': (optim.adafactor(0.1, beta1=0.9), {'v', 'm'}),
  'factored': (
    optim.adafactor(0.1, min_dim_size_to_factor=2),
    {'v', 'v_row', 'v_col'},
  ),
  'adamw': (optim.adamw(optim.constant(0.1)), {'mu', 'nu', 'count'}),
  'sgd': (optim.sgd(0.1, clip_norm=1.0), {'trace'}),
  'optax.adafactor': (
    optax.adafactor(0.1, min_dim_size_to_factor=2, momentum=0.9),
    {'v', 'v_row', 'v_col', 'ema'},
  ),
  'optax.adam': (optax.adam(0.1), {'mu', 'nu', 'count'}),
}
every_optimizer = pytest.mark.parametrize(
  'tx, kinds', OPTIMIZERS.values(), ids=OPTIMIZERS.keys()
)


def used(tx, steps=3):
  """The optimizer's state after some steps."""
  state, update = tx.init(PARAMS), jax.jit(tx.update)
  for i in range(steps):
    grads = jax.tree.map(lambda p, i=i: (i + 1) * 0.1 * p, PARAMS)
    _, state = update(grads, state, PARAMS)
  return state


@every_optimizer
def test_slots_of_every_parameter(tx, kinds):
  state = used(tx)
  view = trees.flatten(slots.get(state))
  assert slots.kinds(slots.get(state)) == kinds
  for path in trees.flatten(PARAMS):
    mine = {p[len(path) + 1 :]: x for p, x in view.items() if path + '/' in p}
    assert mine, f'no slot of {path}'
    for name, x in mine.items():
      param = trees.flatten(PARAMS)[path]
      assert name in ('v_row', 'v_col') or x.shape == param.shape
      assert x.any()
  placed = {path.rpartition('/')[0] for path in view} - {''}
  assert placed == trees.flatten(PARAMS).keys()


@every_optimizer
def test_what_is_replaced_is_got(tx, kinds):
  state, other = used(tx), tx.init(PARAMS)
  assert jax.tree.structure(state) == jax.tree.structure(other)
  got = slots.get(slots.replace(other, slots.get(state)))
  jax.tree.map(np.testing.assert_array_equal, got, slots.get(state))
  back = slots.replace(state, slots.get(other))
  jax.tree.map(np.testing.assert_array_equal, slots.get(back), slots.get(other))
  same = slots.replace(state, {})
  jax.tree.map(np.testing.assert_array_equal, same, state)


def test_only_adams_own_count_is_a_slot():
  state = used(optim.adamw(optim.constant(0.1)))
  new = slots.replace(state, {'count': jnp.int32(70)})
  assert (int(new[1].count), int(new[3].count)) == (70, 3)


def test_replace_refuses_what_is_not_there():
  state = used(optim.sgd(0.1))
  with pytest.raises(ValueError, match=r"\['mlp/kernel/mu', 'other/trace'\]"):
    slots.replace(state, {'other': {'trace': 0}, 'mlp': {'kernel': {'mu': 0}}})


def test_two_states_with_equal_slots_are_refused():
  state = optax.chain(optax.trace(0.9), optax.trace(0.1)).init(PARAMS)
  with pytest.raises(ValueError, match=r"slots of the same names: \['trace'\]"):
    slots.get(state)


@every_optimizer
def test_a_saved_state_has_the_same_view(tx, kinds, tmp_path):
  state = used(tx)
  with run_state.manager(tmp_path) as saved:
    tree = {'params': PARAMS, 'opt_state': state}
    run_state.save(saved, 3, tree, {}, {})
  found = checkpoints.read(tmp_path)
  assert all(
    isinstance(x, trees.LazyArray)
    for x in trees.flatten(found.opt_state).values()
  )
  want = jax.device_get(slots.get(state))
  jax.tree.map(np.testing.assert_array_equal, found.opt_state, want)


def tree(prefix):
  """A golden subtree, where vmoe's MLP has the name of vit_jax's."""
  flat = {
    path.removeprefix(prefix).replace('/Mlp/', '/MlpBlock_0/'): jnp.asarray(x)
    for path, x in GOLDEN.items()
    if path.startswith(prefix)
  }
  return trees.unflatten(
    {p.replace('Moe/MlpBlock_0', 'Moe/Mlp'): x for p, x in flat.items()}
  )


def below(node):
  """Parameters below 'block', as a layer's are."""
  return {'block': node}


def vmoe_states(kind):
  """vmoe's optimizer states: dense, and after its own upcycling."""
  states = []
  for which in ('dense', 'upcycled'):
    flat = tree(f'opt/{kind}/{which}_state')['']
    if kind == 'adam':
      count = flat.get('count', jnp.int32(0))
      state = optax.ScaleByAdamState(
        count, below(flat['mu']), below(flat['nu'])
      )
    else:
      first, ema = flat['0'], flat['1']['ema']
      fields = (below(first[k]) for k in ('v_row', 'v_col', 'v'))
      count = jnp.int32(3)
      factored = optax.FactoredState(count, *fields)
      state = (factored, optax.EmaState(count, below(ema)))
    states.append(state)
  return states


@pytest.mark.parametrize('kind', ['adam', 'adafactor'])
def test_moments_are_expanded_as_in_vmoe(kind):
  dense, want = vmoe_states(kind)
  dense, want = slots.get(dense), slots.get(want)
  # The golden state is of the MoE layer alone.
  for name in ('norm', 'SelfAttention'):
    want['block'][name] = dense['block'][name]
  if kind == 'adam':
    want['count'] = dense['count']
  fresh = jax.tree.map(jnp.zeros_like, want)
  found = surgery.upcycle(dense, want, key=jax.random.key(0), fresh=fresh)
  assert not trees.diff(want, found)
  for path, x in trees.flatten(found).items():
    np.testing.assert_array_equal(
      x, trees.flatten(want)[path], err_msg=f'{path}: {HINT}'
    )


def test_placeholders_of_optax_are_no_slots():
  dense, upcycled = (
    trees.flatten(slots.get(x)) for x in vmoe_states('adafactor')
  )
  for view, moe in ((dense, 'MlpBlock_0'), (upcycled, 'Moe/Mlp')):
    of = lambda path: {  # noqa: E731
      p.rsplit('/', 1)[1]
      for p in view  # noqa: B023
      if p.startswith(f'block/{moe}/{path}/')  # noqa: B023
    }
    assert of('Dense_0/kernel') == {'v_row', 'v_col', 'ema'}
    assert of('Dense_0/bias') == {'v', 'ema'}
  assert not [p for p, x in {**dense, **upcycled}.items() if x.shape == (1,)]


SMALL = dataclasses.replace(TINY, num_encoder_layers=2, num_decoder_layers=1)
SPARSE = dataclasses.replace(SMALL, encoder_moe=ENCODER)


@pytest.fixture(scope='module')
def dense_run(tmp_path_factory):
  """A dense run of AdamW at step 900, whose moments hold 20 updates."""
  folder = tmp_path_factory.mktemp('dense')
  params = initialize.init_params(t5.T5(SMALL), 0)
  state = optim.adamw(1e-3).init(params)
  rng = np.random.default_rng(0)
  view = jax.tree.map(
    lambda x: jnp.asarray(rng.uniform(size=x.shape), x.dtype), slots.get(state)
  )
  state = slots.replace(state, view | {'count': jnp.int32(20)})
  with run_state.manager(folder) as saved:
    run_state.save(saved, 900, {'params': params, 'opt_state': state}, {}, {})
  return folder, view


def start(folder, optimizer, **options):
  init = initialize.InitFrom(
    str(folder), **{'optimizer_state': 'expand', **options}
  )
  return initialize.from_checkpoint(
    init, t5.T5(SPARSE), losses.seq2seq, optimizer, BATCH, 0
  )


def test_adams_moments_are_expanded_in_a_run(dense_run):
  folder, dense = dense_run
  schedule = optim.inverse_sqrt(0.1, 100)
  # Moments are copied also where the experts themselves are not.
  options = {'expert_init': expert_init.fresh, 'step': 0}
  state, made_of = start(folder, optim.adamw(schedule), **options)
  found, dense = trees.flatten(slots.get(state.opt_state)), trees.flatten(dense)
  # The bias correction goes on from the moments' count, the schedule from
  # the step.
  assert int(found.pop('count')) == 20
  assert int(state.opt_state[3].count) == int(state.step) == 0
  assert made_of['step'] == 0
  experts = routers = 0
  for path, x in found.items():
    if '/router/' in path:
      routers += 1
      assert not x.any()
      continue
    want = dense[path.replace('/expert/', '/')]
    experts += '/expert/' in path
    np.testing.assert_array_equal(x, np.broadcast_to(want, x.shape))
  assert experts and routers


@pytest.mark.parametrize(
  'optimizer, want',
  [
    (optim.adafactor(0.1), "count, mu, nu, the optimizer's v."),
    (optim.sgd(0.1), "count, mu, nu, the optimizer's trace."),
  ],
)
def test_moments_of_another_optimizer_are_refused(dense_run, optimizer, want):
  message = f'{dense_run[0]} has no optimizer state to expand: its slots are '
  with pytest.raises(ValueError, match=re.escape(message + want)):
    start(dense_run[0], optimizer)


def test_a_source_without_moments_is_refused(dense_run, tmp_path):
  params = checkpoints.read(dense_run[0]).params
  with run_state.manager(tmp_path) as saved:
    params = jax.tree.map(np.asarray, params)
    run_state.save(saved, 5, {'params': params, 'opt_state': {}}, {}, {})
  with pytest.raises(
    ValueError, match=r'its slots are none, the opt.* count, m'
  ):
    start(tmp_path, optim.adamw(0.1))


def test_expanded_adam_trains_as_every_expert_alone_would():
  """An update of experts with expanded moments is the dense MLP's."""
  dense = {'MlpBlock_0': {'kernel': jnp.asarray([[0.5, -1.0], [2.0, 0.1]])}}
  sparse = {
    'Moe': {'Mlp': {'kernel': jnp.stack([dense['MlpBlock_0']['kernel']] * 3)}}
  }
  dense, sparse = {'b': dense}, {'b': sparse}
  tx = optim.adamw(0.1)
  state = tx.init(dense)
  for _ in range(4):
    _, state = tx.update(jax.tree.map(jnp.square, dense), state, dense)
  target = tx.init(sparse)
  view = surgery.upcycle(
    slots.get(state), slots.get(target), key=jax.random.key(0)
  )
  target = slots.replace(target, view)
  want, _ = tx.update(dense, state, dense)
  found, _ = tx.update(sparse, target, sparse)
  for expert in found['b']['Moe']['Mlp']['kernel']:
    np.testing.assert_allclose(
      expert, want['b']['MlpBlock_0']['kernel'], rtol=1e-6
    )


def test_linear_schedule_equals_vmoe():
  schedule = optim.linear(1e-3, 10, 100, end=1e-5)
  for step, want in zip(
    GOLDEN['schedule/steps'],
    GOLDEN['schedule/warmup_linear_decay'],
    strict=True,
  ):
    assert float(schedule(int(step))) == pytest.approx(want, rel=1e-5), step
  traced = jax.jit(schedule)(jnp.int32(50))
  assert traced.dtype == schedule(50).dtype == jnp.float32
  np.testing.assert_allclose(traced, schedule(50), rtol=1e-6)
  assert optim.linear(2.0, 0, 10)(0) == 2.0
  assert optim.linear(2.0, 0, 10)(5) == 1.0
  assert optim.linear(2.0, 5, 10)(1000) == 0.0
