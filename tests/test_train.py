# SPDX-License-Identifier: Apache-2.0
"""train(): where it starts, that it goes on exactly, what it refuses."""

import dataclasses
import functools
import itertools
import json
import shutil

import jax
from jax import monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_text, tiny_vit_runs
from tests.conftest import GOLDEN
from tests.test_t5 import BATCH, DECODER, ENCODER, TINY
from upcycle import (
  checkpoints,
  evaluate,
  initialize,
  losses,
  optim,
  results,
  routing,
  train,
  train_step,
  trees,
)
from upcycle.checkpoints import slots
from upcycle.checkpoints import state as run_state
from upcycle.data import augment, images, text, vocabulary
from upcycle.models import moe, t5, vit
from upcycle.results import sweep

SMALL = dataclasses.replace(
  TINY, num_encoder_layers=2, num_decoder_layers=1, decoder_moe_layers=(0,)
)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return tiny_text.corpus(tmp_path_factory.mktemp('text') / 'corpus')


def small_model(corpus, sparse=True, **changes):
  top_2 = moe.MoeConfig(
    num_experts=4, router=routing.top_k, aux_weights=(('load_balance', 0.01),)
  )
  config = dataclasses.replace(
    SMALL,
    vocab_size=vocabulary.load(corpus).padded_size(),
    encoder_moe=moe.MoeConfig(num_experts=4) if sparse else None,
    decoder_moe=top_2 if sparse else None,
    **changes,
  )
  return t5.T5(config)


def batches(corpus, **options):
  return text.span_corruption(corpus, batch_size=4, inputs_length=32, **options)


def norms(model, params):
  return {
    'embedding': float(jnp.linalg.norm(params['token_embedder']['embedding']))
  }


def run(corpus, folder, **options):
  """Six steps of training with a checkpoint after every second one."""
  options = {
    'model': small_model(corpus, dropout_rate=0.1),
    'optimizer': optim.adafactor(optim.inverse_sqrt(0.1, 100)),
    'train_data': batches(corpus),
    'eval_data': batches(
      corpus, split='validation', repeat=False, shuffle=False
    ),
    'num_steps': 6,
    'log_every': 1,
    'eval_every': 2,
    'evaluations': {'norms': norms},
    'checkpoint_every': 2,
    'config': lambda: 'train.num_steps = 6\nseed = 0\n',
    **options,
  }
  return train.train(str(folder), **options)


class Counting:
  """Batches whose iterator notes how much has been compiled by each of them."""

  def __init__(self, data):
    self.data, self.compiled, self.seen = data, 0, []

  def __call__(self, event, seconds, **_):
    self.compiled += event.endswith('backend_compile_duration')

  def __iter__(self):
    iterator, counting = iter(self.data), self

    class Iterator:
      get_state = staticmethod(iterator.get_state)
      set_state = staticmethod(iterator.set_state)

      def __next__(self):
        counting.seen.append(counting.compiled)
        return next(iterator)

    return Iterator()


@pytest.fixture(scope='module')
def counting(corpus):
  return Counting(batches(corpus))


@pytest.fixture(scope='module')
def whole(corpus, counting, tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / 'whole'
  monitoring.register_event_duration_secs_listener(counting)
  state = run(corpus, folder, train_data=counting)
  monitoring.unregister_event_duration_listener(counting)
  return folder, state


def test_nothing_is_compiled_after_two_steps(whole, counting):
  """Not by steps, and not by evaluations and checkpoints like the first."""
  first, *_ = counting.seen
  after_two = counting.seen[3:]  # the first batch is also that of the shapes
  assert first < after_two[0] and len(after_two) == 4
  assert set(after_two) == {after_two[0]}


class Killed(Exception):
  """What stops a run in these tests."""


class Stopping:
  """Batches whose iterator is killed after some."""

  def __init__(self, data, after):
    self.data, self.after = data, after

  def __iter__(self):
    iterator, after = iter(self.data), self.after

    class Iterator:
      get_state = staticmethod(iterator.get_state)
      set_state = staticmethod(iterator.set_state)

      def __next__(self):
        nonlocal after
        after -= 1
        if after < 0:
          raise Killed
        return next(iterator)

    return Iterator()


def same_runs(first, second, states):
  """The same final states and metrics but for the clock and peak memory."""
  jax.tree.map(np.testing.assert_array_equal, *states)
  clock = ('seconds', 'tokens_per_second', 'images_per_second', 'peak_memory')
  rows = [
    [
      {k: v for k, v in row.items() if k not in clock}
      for row in results.read(f)
    ]
    for f in (first, second)
  ]
  assert rows[0] == rows[1]


@pytest.mark.parametrize('after', [1, 3, 4, 5])
def test_a_killed_run_ends_bit_identical(corpus, whole, tmp_path, after):
  with pytest.raises(Killed):
    run(corpus, tmp_path, train_data=Stopping(batches(corpus), after))
  second = run(corpus, tmp_path)
  same_runs(whole[0], tmp_path, (whole[1], second))


def test_so_does_a_killed_run_of_vision(corpus, tmp_path):
  """A sparse ViT with AdamW, on shuffled and shifted images, mixed up."""
  config = vit.preset(
    'vit_s16',
    **{**tiny_vit_runs.SIZES, 'image_size': 8, 'num_classes': 5},
    moe=moe.MoeConfig(num_experts=4, group_size=None),
  )
  pixels = tiny_vit_runs.pictures()
  source = images.Source(
    'noise', 5, 20, lambda i: {'image': pixels[i], 'labels': np.array([i % 5])}
  )
  transforms = (augment.random_shift, augment.value_range)
  data = images.batches(source, transforms, batch_size=6, mixup=0.2)
  options = {
    'model': vit.ViT(config),
    'loss': losses.classification,
    'optimizer': optim.adamw(
      optim.rsqrt(0.01, 2, 4), weight_decay=(('.*/kernel', 0.1),)
    ),
    'eval_data': None,
    'evaluations': {},
  }
  state = run(corpus, tmp_path / 'whole', train_data=data, **options)
  killed = Stopping(data, 5)
  with pytest.raises(Killed):
    run(corpus, tmp_path / 'killed', train_data=killed, **options)
  again = run(corpus, tmp_path / 'killed', train_data=data, **options)
  same_runs(tmp_path / 'whole', tmp_path / 'killed', (state, again))


def test_what_a_run_writes(whole):
  folder, state = whole
  assert int(state.step) == 6 and int(state.opt_state.count) == 6
  assert (folder / 'config.gin').read_text().startswith('train.num_steps')
  assert list(folder.glob('events.out.tfevents.*'))
  train_rows = results.read(folder, 'train')
  assert [row['step'] for row in train_rows] == [1, 2, 3, 4, 5, 6]
  assert {'loss', 'accuracy', 'load_balance', 'gradient_norm'} <= set(
    train_rows[0]
  )
  for metric in ('load', 'dropped', 'coverage', 'confidence', 'entropy'):
    assert f'encoder/layers_1/mlp/{metric}' in train_rows[0]
    assert f'decoder/layers_0/mlp/{metric}' in train_rows[0]
  assert len(train_rows[0]['encoder/layers_1/mlp/load']) == 4
  assert [row['step'] for row in results.read(folder, 'eval')] == [0, 2, 4, 6]
  assert run_state.latest_step(folder) == 6
  assert train_rows[-1]['loss'] < train_rows[0]['loss']


def test_further_evaluations_run_at_both_ends(whole):
  folder, state = whole
  rows = results.read(folder, 'norms')
  assert [row['step'] for row in rows] == [0, 6]
  assert rows[1]['embedding'] == norms(None, state.params)['embedding']
  assert {'embedding', 'seconds'} <= rows[0].keys()


def test_further_evaluations_between(corpus, tmp_path):
  run(corpus, tmp_path / 'a', num_steps=5, evaluations_every=4, eval_every=4)
  steps = [row['step'] for row in results.read(tmp_path / 'a', 'norms')]
  assert steps == [0, 4, 5]
  with pytest.raises(ValueError, match='3 is no multiple of eval_every 2'):
    run(corpus, tmp_path / 'b', evaluations_every=3)
  assert not (tmp_path / 'b').exists()


def test_a_longer_run_goes_on(corpus, whole, tmp_path):
  shutil.copytree(whole[0], tmp_path / 'run')
  state = run(
    corpus,
    tmp_path / 'run',
    num_steps=8,
    config=lambda: 'train.num_steps = 8\nseed = 0\n',
  )
  assert int(state.step) == 8


def test_starts_from_the_dense_step(corpus, whole, tmp_path):
  dense_run = tmp_path / 'dense'
  run(corpus, dense_run, model=small_model(corpus, sparse=False))
  init = initialize.InitFrom(str(dense_run), optimizer_state='expand')
  state = run(corpus, tmp_path / 'sparse', init_from=init, num_steps=2)
  assert int(state.step) == 8 and int(state.opt_state.count) == 8
  receipt = json.loads((tmp_path / 'sparse/receipt.json').read_text())
  assert receipt['step'] == 6 and receipt['source']['format'] == 'upcycle'
  first = results.read(tmp_path / 'sparse', 'eval')[0]
  last = results.read(dense_run, 'eval')[-1]
  assert first['step'] == 6 and first['loss'] != last['loss']
  step_0 = receipt['step_0']
  # On the very batch that the run begins with.
  step = evaluate.make_eval_step(
    small_model(corpus, sparse=False), losses.seq2seq
  )
  dense = checkpoints.read(dense_run)
  batch = next(iter(batches(corpus)))
  params = jax.tree.map(np.asarray, dense.params)
  expected = evaluate.evaluate(step, params, [batch])['loss']
  assert step_0['dense_loss'] == pytest.approx(expected, rel=1e-6)
  assert abs(step_0['loss'] - expected) > 1e-5
  for scale in step_0['scale'].values():
    assert scale['measured'] == pytest.approx(scale['expected'], rel=0.3)
  # Its own checkpoint comes first when the run is started again.
  again = run(corpus, tmp_path / 'sparse', init_from=init, num_steps=2)
  jax.tree.map(np.testing.assert_array_equal, again, state)


def test_dense_continuation_has_no_jump(corpus, tmp_path):
  model = small_model(corpus, sparse=False)
  run(corpus, tmp_path / 'a', model=model)
  init = initialize.InitFrom(str(tmp_path / 'a'), optimizer_state='expand')
  run(corpus, tmp_path / 'b', model=model, init_from=init, num_steps=1)
  before = results.read(tmp_path / 'a', 'eval')[-1]['loss']
  assert results.read(tmp_path / 'b', 'eval')[0]['loss'] == before


def test_a_loss_that_is_not_finite_stops_the_run(corpus, tmp_path):
  def loss(apply, batch):
    sums = losses.seq2seq(apply, batch)
    bad = batch['encoder_input_tokens'][0, 0] == BAD
    return sums | {'loss': jnp.where(bad, jnp.nan, sums['loss'])}

  seen = itertools.islice(iter(batches(corpus)), 4)
  tokens = [b['encoder_input_tokens'][0, 0] for b in seen]
  BAD = tokens[3]
  assert BAD not in tokens[:3]
  with pytest.raises(FloatingPointError, match=r'step 4 .*\n?.*of step 2'):
    run(corpus, tmp_path, loss=loss, eval_data=None)
  assert run_state.latest_step(tmp_path) == 2
  assert 'step 4 is not' in sweep.result(tmp_path)['error']


def test_a_folder_that_another_process_trains_in_is_left_alone(
  corpus, tmp_path
):
  run(corpus, tmp_path, num_steps=2)

  def files():
    return {f: f.read_bytes() for f in tmp_path.rglob('*') if f.is_file()}

  before = files()
  with results.held(tmp_path), pytest.raises(ValueError, match='Another proc'):
    run(corpus, tmp_path, num_steps=3, config=lambda: 'train.num_steps = 3\n')
  assert files() == before
  assert run(corpus, tmp_path, num_steps=3).step == 3


def test_a_gradient_that_is_not_finite_stops_the_run(corpus, tmp_path):
  """Where the loss is finite, before its update is saved."""

  @jax.custom_vjp
  def poison(x, bad):
    return x

  poison.defvjp(
    lambda x, bad: (x, bad),
    lambda bad, g: (jnp.where(bad, jnp.nan, g), None),
  )

  def loss(apply, batch):
    sums = losses.seq2seq(apply, batch)
    bad = batch['encoder_input_tokens'][0, 0] == BAD
    return sums | {'loss': poison(sums['loss'], bad)}

  seen = itertools.islice(iter(batches(corpus)), 4)
  BAD = [b['encoder_input_tokens'][0, 0] for b in seen][3]
  with pytest.raises(FloatingPointError, match=r'step 4'):
    run(corpus, tmp_path, loss=loss, eval_data=None)
  assert run_state.latest_step(tmp_path) == 2


# At the first array that it cannot read, Orbax closes its event loop on the
# reads of all others: they have nobody left to tell.
@pytest.mark.filterwarnings(
  'ignore:(?s).*Event loop is closed:pytest.PytestUnraisableExceptionWarning'
)
def test_a_damaged_checkpoint_is_named(corpus, whole, tmp_path):
  shutil.copytree(whole[0], tmp_path / 'run')
  state = tmp_path / 'run/checkpoints/6/state'
  for file in state.rglob('d/*'):
    file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(ValueError, match='checkpoints/6 is damaged'):
    run(corpus, tmp_path / 'run', num_steps=8)
  shutil.rmtree(state.parent)
  assert int(run(corpus, tmp_path / 'run').step) == 6


def test_a_source_without_a_step_must_be_given_one(corpus, tmp_path):
  source = GOLDEN / 'hf_t5_v1_1'
  model = t5.T5(t5.T5Config(**checkpoints.read(source).metadata['model']))
  start = lambda init: initialize.from_checkpoint(  # noqa: E731
    init, model, losses.seq2seq, optim.adafactor(0.1), BATCH, 0
  )
  with pytest.raises(ValueError, match='does not record its step'):
    start(initialize.InitFrom(str(source)))
  state, receipt = start(initialize.InitFrom(str(source), step=500))
  assert int(state.step) == int(state.opt_state.count) == receipt['step'] == 500


def test_another_optimizers_run_is_a_source_too(corpus, tmp_path):
  model = small_model(corpus, sparse=False)
  options = {'eval_data': None, 'evaluations': {}, 'num_steps': 2}
  run(corpus, tmp_path, model=model, optimizer=optim.adamw(1e-3), **options)
  source = checkpoints.read(tmp_path)
  assert source.step == 2
  assert slots.kinds(source.opt_state) == {'mu', 'nu', 'count'}


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda d: (d / 'checkpoint_1000').mkdir(), 'neither empty nor a run'),
    (
      lambda d: (d / 'config.gin').write_text('seed = 1\ntrain.num_steps = 9'),
      r'- seed = 1(.|\n)*Give another MODEL_DIR',
    ),
  ],
)
def test_refuses_the_folder_of_another_run(corpus, tmp_path, make, message):
  make(tmp_path)
  before = sorted(p.name for p in tmp_path.rglob('*'))
  with pytest.raises(ValueError, match=message):
    run(corpus, tmp_path)
  assert sorted(p.name for p in tmp_path.rglob('*')) == before


def test_refuses_a_checkpoint_of_another_model(corpus, whole, tmp_path):
  shutil.copytree(whole[0], tmp_path / 'run')
  wider = small_model(corpus, mlp_dim=48, dropout_rate=0.1)
  with pytest.raises(ValueError, match='mismatch: opt_state/slots/decoder'):
    run(corpus, tmp_path / 'run', model=wider)


def test_bad_input_writes_nothing(corpus, tmp_path):
  dense = str(GOLDEN / 't5x_tiny_dense_checkpoint')
  init = initialize.InitFrom(dense)
  with pytest.raises(ValueError, match='mismatch: token_embedder/embedding'):
    run(corpus, tmp_path / 'run', init_from=init)
  assert not (tmp_path / 'run').exists()
  with pytest.raises(ValueError, match='optimizer_state is'):
    initialize.InitFrom(dense, optimizer_state='tile')


def test_microbatches_change_nothing():
  """In a dense model; in a sparse one they are other groups of tokens."""
  model, optimizer = t5.T5(SMALL), optim.adafactor(0.1)
  start = jax.jit(lambda: initialize.from_scratch(model, optimizer, 0))()
  states, metrics = [], []
  for parts in (1, 4):
    step = train_step.make_train_step(
      model, losses.seq2seq, optimizer, microbatches=parts
    )
    state, values = jax.jit(step)(start, BATCH)
    states.append(state)
    metrics.append(values)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, *metrics)
  jax.tree.map(close, *(state.params for state in states))


def test_step_is_the_gradient_of_the_objective():
  """One SGD step, against the loss and the auxiliary loss by hand."""
  config = dataclasses.replace(SMALL, encoder_moe=ENCODER, decoder_moe=DECODER)
  model, optimizer = t5.T5(config), optim.sgd(1.0, momentum=0.0)
  state = jax.jit(lambda: initialize.from_scratch(model, optimizer, 0))()

  def objective(params):
    logits, sown = model.apply(
      {'params': params},
      *(BATCH[f'{k}_tokens'] for k in ('encoder_input', 'decoder_input')),
      BATCH['decoder_target_tokens'],
      mutable=['losses'],
    )
    targets, weights = (
      BATCH['decoder_target_tokens'],
      BATCH['decoder_loss_weights'],
    )
    log_p = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    z = 1e-4 * jax.nn.logsumexp(logits, -1) ** 2
    balance = jnp.stack(jax.tree.leaves(sown['losses'])).mean()
    return jnp.sum((z - picked) * weights) / weights.sum() + balance

  step = train_step.make_train_step(model, losses.seq2seq, optimizer)
  after, metrics = jax.jit(step)(state, BATCH)
  total, grads = jax.jit(jax.value_and_grad(objective))(state.params)
  np.testing.assert_allclose(metrics['total'], total, rtol=1e-5)
  for path, grad in trees.flatten(grads).items():
    moved = (
      trees.flatten(state.params)[path] - trees.flatten(after.params)[path]
    )
    np.testing.assert_allclose(moved, grad, rtol=1e-3, atol=2e-6, err_msg=path)


def test_evaluation_weighs_by_targets():
  model = t5.T5(SMALL)
  params = jax.jit(lambda: initialize.init_params(model, 0))()
  step = evaluate.make_eval_step(model, losses.seq2seq)
  whole = evaluate.evaluate(step, params, [BATCH])
  halves = [{k: v[i : i + 2] for k, v in BATCH.items()} for i in (0, 2)]
  parts = evaluate.evaluate(step, params, halves)
  assert whole.keys() == {'loss', 'z_loss', 'accuracy'}
  for name in whole:
    assert whole[name] == pytest.approx(parts[name], rel=1e-5)
  for function in (evaluate.evaluate, evaluate.timed):
    with pytest.raises(ValueError, match=r'Nothing .* Give data that begin'):
      function(step, params, [])
