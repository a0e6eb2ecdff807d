# SPDX-License-Identifier: Apache-2.0
"""What a run says that it costs: operations, parameters, machine, memory."""

import dataclasses
import functools
import json
import types

import jax
import pytest

from tests import tiny_text, tiny_vit_runs
from tests.test_t5 import TINY
from upcycle import (
  cost,
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
from upcycle.data import text, vocabulary
from upcycle.models import moe, t5, vit
from upcycle.plan import batches

B, INPUTS, TARGETS = 4, 32, 16
EXPERTS = moe.MoeConfig(num_experts=8, capacity_factor=2.0)


def facts(config):
  """`cost.of_run` of a T5, and its parameters by path."""
  model, optimizer = t5.T5(config), optim.adafactor(0.1)
  state = jax.eval_shape(lambda: initialize.from_scratch(model, optimizer, 0))
  batch = batches.text(B, {'inputs': INPUTS, 'targets': TARGETS})
  step = train_step.make_train_step(model, losses.seq2seq, optimizer)
  forward = evaluate.make_eval_step(model, losses.seq2seq)
  found = cost.of_run(model, step, forward, state, batch)
  return found, trees.flatten(state.params)


def forward_flops(config, params):
  """By hand: 2 for each number of a kernel and token that it meets.

  And the attention's two products, of queries and keys and of probabilities
  and values; where positions count, their biases are repeated over the batch by
  a product with ones.
  """
  encoder, decoder = B * INPUTS, B * TARGETS
  total = 0
  for path, leaf in params.items():
    if path.endswith('kernel'):
      memory = path.startswith('encoder') or any(
        f'encoder_decoder_attention/{x}/' in path for x in ('key', 'value')
      )
      total += 2 * leaf.size * (encoder if memory else decoder)
  own = config.num_encoder_layers * INPUTS * encoder
  own += config.num_decoder_layers * TARGETS * decoder
  pairs = own + config.num_decoder_layers * INPUTS * decoder
  return total + 2 * config.num_heads * (2 * config.head_dim * pairs + own)


def test_a_dense_step_is_three_times_its_forward_products():
  found, params = facts(TINY)
  assert found['forward_flops'] == forward_flops(TINY, params)
  # Backwards there are two for each, but for those with ones.
  ratio = found['step_flops'] / found['forward_flops']
  assert ratio == pytest.approx(3, rel=0.01)
  assert found['tokens'] == B * (INPUTS + TARGETS)
  count = sum(x.size for x in params.values())
  assert found['parameters'] == found['active_parameters'] == count


def test_capacity_2_doubles_the_mlps_of_sparse_layers():
  """And adds the routers, which are small; nothing else is a product."""
  config = dataclasses.replace(TINY, encoder_moe=EXPERTS)
  dense, params = facts(TINY)
  sparse, _ = facts(config)
  mlps = sum(
    2 * B * INPUTS * leaf.size
    for path, leaf in params.items()
    if path.startswith(('encoder/layers_1/mlp', 'encoder/layers_3/mlp'))
  )
  routers = 2 * (2 * B * INPUTS * TINY.emb_dim * 8)
  assert sparse['forward_flops'] == dense['forward_flops'] + mlps + routers


@pytest.mark.parametrize(
  'changes, per_token',
  [
    ({}, 2),
    ({'capacity_factor': 1.0}, 1),
    ({'capacity_factor': 16.0}, 8),
    ({'router': routing.top_k}, 2),
    ({'router': functools.partial(routing.top_k, k=1)}, 1),
    ({'router': routing.top_k, 'capacity_factor': 1.5}, 1.5),
    ({'router': functools.partial(routing.dropless, k=3)}, 3),
  ],
)
def test_active_parameters(changes, per_token):
  """Those of as many experts as a token goes through."""
  config = dataclasses.replace(EXPERTS, **changes)
  model = t5.T5(dataclasses.replace(TINY, encoder_moe=config))
  assert set(model.experts_per_token().values()) == {per_token}
  params = initialize.param_shapes(model)
  flat = trees.flatten(params)
  experts = sum(x.size for k, x in flat.items() if '/expert/' in k)
  rest = sum(x.size for k, x in flat.items() if '/expert/' not in k)
  expected = rest + experts * per_token / 8
  assert cost.active_parameters(model, params) == expected


def test_active_parameters_of_a_vit():
  sparse = moe.MoeConfig(num_experts=4, capacity_factor=1.0)
  options = {'image_size': 8, 'num_classes': 5, **tiny_vit_runs.SIZES}
  model = vit.ViT(vit.preset('vit_s16', **options, moe=sparse))
  params = initialize.param_shapes(model)
  # One expert of four, of a layer's MLP of two kernels and biases.
  expert = 2 * 16 * 24 + 16 + 24
  count = sum(x.size for x in jax.tree.leaves(params))
  assert cost.active_parameters(model, params) == count - 3 * expert


@pytest.fixture
def run(tmp_path):
  """Trains a tiny model up to a step, or goes on with it; gives the folder."""
  corpus = tiny_text.corpus(tmp_path / 'corpus')
  vocab = vocabulary.load(corpus).padded_size()
  config = dataclasses.replace(
    TINY,
    vocab_size=vocab,
    num_encoder_layers=2,
    num_decoder_layers=1,
    encoder_moe=EXPERTS,
  )
  read = functools.partial(
    text.span_corruption, corpus, batch_size=4, inputs_length=32
  )

  def run(num_steps):
    train.train(
      str(tmp_path / 'run'),
      t5.T5(config),
      optimizer=optim.adafactor(0.1),
      train_data=read(),
      eval_data=read(split='validation', repeat=False, shuffle=False),
      num_steps=num_steps,
      log_every=1,
    )
    return tmp_path / 'run'

  return run


def test_memory_is_of_the_fullest_device_where_devices_count(monkeypatch):
  counts = {'peak_bytes_in_use': 3}, {'peak_bytes_in_use': 7}, {}
  devices = [types.SimpleNamespace(memory_stats=lambda c=c: c) for c in counts]
  monkeypatch.setattr(jax, 'local_devices', lambda: devices)
  assert cost.peak_memory() == {'peak_memory': 7, 'memory_of': 'device'}
  del devices[:2]
  assert cost.peak_memory()['memory_of'] == 'host'


def test_a_run_writes_its_cost_once(run):
  folder = run(1)
  first, last = results.read(folder, 'cost')
  assert first['step'] == 0 and last['step'] == 1
  assert 3e7 < last.pop('peak_memory') < 1e12
  assert last.pop('memory_of') == 'host'
  assert first | {'step': 1} == last
  assert first['step_flops'] > 2.9 * first['forward_flops'] > 1e6
  assert first['active_parameters'] < first['parameters']
  assert first['device'] == 'cpu' and first['devices'] == 1
  assert first['jax'] == jax.__version__ and first['cpu'] and first['cores'] > 0
  assert {'python', 'jaxlib', 'flax', 'optax'} < first.keys()
  assert results.read(folder, 'eval')[-1]['tokens_per_second'] > 0
  for _ in range(2):
    run(2)  # goes on, where nothing has changed; then it is over already
  assert [r['step'] for r in results.read(folder, 'cost')] == [0, 1, 2]
  file = folder / 'metrics.jsonl'
  here = json.dumps(first['cpu'])
  file.write_text(file.read_text().replace(here, '"another"'))
  run(3)  # elsewhere
  names = [json.dumps(r['cpu']) for r in results.read(folder, 'cost')]
  assert names == ['"another"'] * 3 + [here] * 2
