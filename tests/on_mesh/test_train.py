# SPDX-License-Identifier: Apache-2.0
"""Whole runs on meshes: the same losses, parameters and checkpoints."""

import contextlib
import functools
import json
import signal

import jax
import numpy as np
import optax
import pytest

from tests import tiny_runs
from tests.on_mesh import meshes
from upcycle import (
  checkpoints,
  depth,
  expert_init,
  initialize,
  losses,
  optim,
  partition,
  preemption,
  results,
  routing,
  train,
  trees,
)
from upcycle.checkpoints import state as run_state
from upcycle.data import batches as data_batches
from upcycle.models import moe, t5, vit


class Batches:
  """Endless batches of noise by their number, which is where they stand."""

  def __init__(self, make):
    self.make = make

  def __iter__(self):
    return Iterator(self.make)


class Iterator:
  def __init__(self, make):
    self.make, self.at = make, 0

  def __next__(self):
    self.at += 1
    return self.make(np.random.default_rng(self.at))

  def get_state(self):
    return {'at': self.at}

  def set_state(self, state):
    self.at = state['at']


def tokens(rng):
  inputs, targets = (rng.integers(1, 96, (16, n), np.int32) for n in (12, 6))
  targets[3, 4:] = 0
  return data_batches.model_batch(inputs, targets)


def pictures(rng):
  return {
    'images': rng.standard_normal((16, 8, 8, 1), np.float32),
    'labels': rng.integers(10, size=(16, 1), dtype=np.int32),
    'label_weights': np.ones((16, 1), np.float32),
    'weights': np.float32(np.arange(16) < 14),
  }


# Groups of as many devices as there may be: the same ones on all meshes.
SPARSE = functools.partial(moe.MoeConfig, group_multiple=8)
TOP_2 = functools.partial(
  SPARSE, router=routing.top_k, aux_weights=(('load_balance', 0.01),)
)


ONE_LAYER = {'num_encoder_layers': 1, 'num_decoder_layers': 1}


def text_model(sparse=True, **changes):
  config = t5.preset(
    't5_1_1_small',
    **tiny_runs.SIZES | ONE_LAYER | changes,
    vocab_size=96,
    dropout_rate=0.1,
    encoder_moe=SPARSE(num_experts=16) if sparse else None,
    decoder_moe=TOP_2(num_experts=8) if sparse else None,
    encoder_moe_layers=(0,),
    decoder_moe_layers=(0,),
  )
  return t5.T5(config)


def vision_model(remat=False):
  config = vit.preset(
    'vit_ti16',
    image_size=8,
    patch_size=4,
    channels=1,
    width=16,
    mlp_dim=32,
    num_heads=2,
    depth=2,
    num_classes=10,
    remat=remat,
    moe=SPARSE(num_experts=8, expert_dropout=0.1),
  )
  return vit.ViT(config)


ADAFACTOR = optim.adafactor(0.01, min_dim_size_to_factor=8)
# The gradient of a key's bias is 0 but for rounding: Adafactor would make of
# that an update as large as any other.
SGD = optax.sgd(0.1, momentum=0.9)
CASES = {
  'text': (text_model, tokens, losses.seq2seq, ADAFACTOR),
  'vision': (vision_model, pictures, losses.classification, SGD),
}


def run(folder, shape, case='text', **options):
  model, make, loss, optimizer = CASES[case]
  options = {
    'model': model(),
    'optimizer': optimizer,
    'train_data': Batches(make),
    'loss': loss,
    'num_steps': 2,
    'log_every': 1,
    'make_mesh': lambda experts: meshes.make(shape, experts),
    'config': lambda: 'seed = 0\n',
    **options,
  }
  return train.train(str(folder), **options)


def agree(a, b, rtol=1e-4):
  flat = (trees.flatten(jax.device_get(x)) for x in (a, b))
  for (path, x), y in zip(next(flat).items(), next(flat).values(), strict=True):
    atol = rtol * np.abs(x).max() + 1e-9
    np.testing.assert_allclose(x, y, rtol, atol, err_msg=path)


@pytest.fixture(scope='module')
def on_one(tmp_path_factory):
  """The folder and the last state of a run on one device, by case."""

  @functools.cache
  def of(case):
    folder = tmp_path_factory.mktemp(case) / 'run'
    return folder, run(folder, (1, 1, 1), case)

  return of


@pytest.mark.parametrize(
  'case, shape',
  [('text', shape) for shape in meshes.SHAPES[1:]] + [('vision', (2, 2, 2))],
  ids=str,
)
def test_losses_gradients_and_updates_do_not_depend_on_the_mesh(
  case, shape, on_one, tmp_path
):
  folder, expected = on_one(case)
  state = run(tmp_path / 'many', shape, case)
  agree(expected.params, state.params)
  rows = [results.read(path, 'train') for path in (folder, tmp_path / 'many')]
  assert [row['step'] for row in rows[0]] == [1, 2]
  timed = {'seconds', 'tokens_per_second', 'images_per_second'}
  for one, many in zip(*rows, strict=True):
    assert one.keys() == many.keys()
    for name in one.keys() - timed - {'split'}:
      assert many[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name


def test_microbatches_and_remat_on_a_mesh(tmp_path):
  options = {'case': 'vision', 'microbatches': 2, 'num_steps': 1}
  plain = run(tmp_path / 'a', (1, 1, 1), **options)
  options['model'] = vision_model(remat=True)
  agree(plain.params, run(tmp_path / 'b', (2, 2, 2), **options).params)


def test_checkpoints_go_from_any_mesh_to_any_other(tmp_path):
  start = functools.partial(initialize.from_scratch, text_model(), ADAFACTOR, 0)

  @contextlib.contextmanager
  def on(shape):
    with jax.set_mesh(meshes.make(shape, text_model().num_experts())):
      yield initialize.on_mesh(start)

  for shape in meshes.SHAPES:
    folder = tmp_path / str(shape)
    with on(shape) as init, run_state.manager(folder) as saved:
      state = init()
      run_state.save(saved, 1, state, {}, {})
    for other in meshes.SHAPES:
      with on(other) as init:
        want = jax.eval_shape(init)
        found, _, _ = run_state.restore(folder, want)
      jax.tree.map(np.testing.assert_array_equal, found, state)
      for leaf, place in zip(*map(jax.tree.leaves, (found, want)), strict=True):
        assert leaf.sharding == place.sharding


@pytest.fixture(scope='module')
def dense(tmp_path_factory):
  """A T5X checkpoint of step 1000 with Adafactor's slots."""
  state = initialize.from_scratch(text_model(sparse=False), ADAFACTOR, 0)
  slots = jax.tree.map(lambda x: np.float32(x + 1), state.opt_state.slots)
  folder = tmp_path_factory.mktemp('dense')
  return str(checkpoints.t5x.write(folder, state.params, 1000, slots))


def upcycled(shape, start, model):
  """The state on a mesh, checked for where it lies, and the receipt."""
  batch = tokens(np.random.default_rng(0))
  with jax.set_mesh(meshes.make(shape, model.num_experts())):
    state, made_of = initialize.from_checkpoint(
      start, model, losses.seq2seq, ADAFACTOR, partition.put_batch(batch), 0
    )
    for leaf, place in zip(
      jax.tree.leaves(state),
      jax.tree.leaves(partition.shardings(state)),
      strict=True,
    ):
      assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
  step_0 = made_of.pop('step_0')
  return jax.device_get(state), made_of, step_0


@pytest.mark.parametrize('init', [expert_init.copy, expert_init.drop_upcycle])
def test_surgery_is_the_same_on_every_mesh(dense, init, tmp_path):
  """Parameters, expanded optimizer state, and the losses in the receipt."""
  start = initialize.InitFrom(dense, init, optimizer_state='expand')
  upcycle = functools.partial(upcycled, start=start, model=text_model())
  expected, made_of, step_0 = upcycle((1, 1, 1))
  assert int(expected.step) == 1000 and step_0['dense_loss'] > 0
  for shape in ((1, 8, 1), (2, 2, 2))[init is not expert_init.copy :]:
    state, same, found = upcycle(shape)
    if init is expert_init.copy:
      jax.tree.map(np.testing.assert_array_equal, state, expected)
    agree(state.params, expected.params, rtol=1e-6)
    assert same == made_of
    for name in ('loss', 'dense_loss'):
      assert found[name] == pytest.approx(step_0[name], rel=1e-5)


def test_depth_tiling_is_the_same_on_every_mesh(dense):
  """A layer's MLP becomes a dense one and experts, which lie differently."""
  start = initialize.InitFrom(
    dense, optimizer_state='expand', depth_tile=depth.stretched
  )
  model = text_model(num_encoder_layers=3, num_decoder_layers=2)
  expected, made_of, _ = upcycled((1, 1, 1), start, model)
  state, same, _ = upcycled((2, 2, 2), start, model)
  jax.tree.map(np.testing.assert_array_equal, state, expected)
  assert same == made_of


def test_sigterm_saves_and_stops_with_a_code_to_restart_on(tmp_path):
  whole = run(tmp_path / 'whole', (2, 4, 1), num_steps=4)

  class Killing(Batches):
    def __iter__(self):
      iterator = super().__iter__()
      original = iterator.make

      def make(rng):
        if iterator.at == 3:  # the run's first batch was read twice
          signal.raise_signal(signal.SIGTERM)
        return original(rng)

      iterator.make = make
      return iterator

  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(preemption.Preempted, match='step 3') as stopped:
    run(tmp_path / 'cut', (2, 4, 1), num_steps=4, train_data=Killing(tokens))
  assert stopped.value.code == 75
  assert signal.getsignal(signal.SIGTERM) is before
  state = run(tmp_path / 'cut', (2, 4, 1), num_steps=4)
  jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_a_checkpoint_of_other_processes_is_refused(tmp_path):
  run(tmp_path / 'a', (1, 1, 1), num_steps=1)
  (file,) = (tmp_path / 'a').glob('checkpoints/*/data/metadata')
  (state,) = json.loads(file.read_text())['processes']
  file.write_text(json.dumps({'processes': [state, state]}))
  with pytest.raises(ValueError, match='of 2 processes and cannot be gone on'):
    run(tmp_path / 'a', (1, 1, 1), num_steps=2)
