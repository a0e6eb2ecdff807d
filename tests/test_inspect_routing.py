# SPDX-License-Identifier: Apache-2.0
"""How far experts are apart, who gets which token, and the pictures of both."""

import dataclasses
import functools
import json
import runpy
import shutil
import sys

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_runs, tiny_scripts, tiny_vit_runs
from upcycle import (
  initialize,
  inspect_routing,
  losses,
  results,
  routing,
  surgery,
)
from upcycle.models import moe, t5
from upcycle.results import sweep

FOLDER = tiny_scripts.ROOT / 'experiments/21_routing'
RNG = np.random.default_rng(0)
SPARSE = moe.MoeConfig(num_experts=4, group_size=24)
TOP_2 = dataclasses.replace(SPARSE, router=routing.top_k)
CONFIG = functools.partial(
  t5.preset, 't5_1_1_small', vocab_size=64, **tiny_runs.SIZES
)
ROUTERS = {
  'top_k': routing.top_k,
  'dropless': routing.dropless,
  'expert_choice': routing.expert_choice,
}


def noise(config):
  """Parameters of a T5, all of them random."""
  shapes = initialize.param_shapes(t5.T5(config))
  draw = lambda x: jnp.asarray(RNG.normal(size=x.shape), x.dtype)  # noqa: E731
  return jax.tree.map(draw, shapes), shapes


def batch_of(rows, length):
  """With padding at the end of its rows."""
  tokens = RNG.integers(1, 64, (rows, length), np.int32)
  tokens[:, -2:] = 0
  return {
    'encoder_input_tokens': tokens,
    'decoder_input_tokens': tokens,
    'decoder_target_tokens': tokens,
    'decoder_loss_weights': tokens > 0,
  }


def test_copies_are_where_they_were():
  dense, _ = noise(CONFIG())
  _, shapes = noise(CONFIG(encoder_moe=SPARSE, decoder_moe=TOP_2))
  sparse = surgery.upcycle(dense, shapes, key=jax.random.key(0))
  found = inspect_routing.vectors(dense, sparse)
  assert {*found} == {'encoder/layers_1/mlp', 'decoder/layers_1/mlp'}
  for one, experts in found.values():
    assert experts.shape == (4, 3 * 16 * 24)
    np.testing.assert_array_equal(experts, np.stack([one] * 4))
    apart = inspect_routing.apart(one, experts)
    np.testing.assert_allclose(apart.experts, 1)
    np.testing.assert_allclose(apart.dense, 1)
    np.testing.assert_array_equal(apart.distance, 0)
    assert np.isnan(apart.updates).all()


def test_what_is_added_is_seen_apart_from_what_was_there():
  dense, update, other = np.linalg.qr(RNG.normal(size=(50, 3)))[0].T
  experts = 3 * dense + np.stack([update, 2 * update, -update, other])
  apart = inspect_routing.apart(3 * dense, experts)
  wanted = [[1, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 1]]
  np.testing.assert_allclose(apart.updates, wanted, atol=1e-12)
  np.testing.assert_allclose(apart.distance, np.array([1, 2, 1, 1]) / 3)
  np.testing.assert_allclose(apart.dense[1], 3 / 13**0.5)
  np.testing.assert_allclose(apart.experts[0, 2], 8 / 10)


@pytest.mark.parametrize('name', ROUTERS)
def test_assignments_are_the_routers(name):
  """Rows of 10 in groups of 20, which a spy sees as they are routed."""
  routed = {}  # by shape of logits: configs route shapes of their own

  def spy(logits, *args, **kwargs):
    it = ROUTERS[name](logits, *args, **kwargs)
    routed[logits.shape] = it, logits
    return it

  experts = dataclasses.replace(SPARSE, router=spy)
  key = 'encoder_moe' if name == 'expert_choice' else 'decoder_moe'
  model = t5.T5(CONFIG(**{key: experts}))
  params, _ = noise(model.config)
  traced = inspect_routing.make_seen(model, losses.seq2seq).__wrapped__

  @jax.jit
  def run(params, batch):
    return traced(params, batch), routed[2, 20, 4]

  seen, (it, logits) = run(params, batch_of(4, 10))
  ((_, (weights, probabilities)),) = seen.items()
  combine = it.masks(20)[1].sum(-1)
  np.testing.assert_allclose(weights, combine.reshape(4, 10, 4))
  wanted = jax.nn.softmax(logits).reshape(4, 10, 4)
  np.testing.assert_allclose(probabilities, wanted, rtol=1e-6)
  assert weights[:, :-2].any()
  assert not weights[:, -2:].any()


def test_groups_that_are_filled_up_become_rows_again():
  """30 tokens in two parts, each of two groups of 8 and one token to fill."""
  experts = dataclasses.replace(SPARSE, group_size=8, group_multiple=2)
  model = t5.T5(CONFIG(encoder_moe=experts))
  params, _ = noise(model.config)
  batch = batch_of(6, 5)
  seen = inspect_routing.make_seen(model, losses.seq2seq)(params, batch)
  (weights, _) = seen['encoder/layers_1/mlp']
  assert weights.shape == (6, 5, 4)
  real = batch['encoder_input_tokens'] > 0
  assert not weights[~real].any()
  # 6 and 3 real tokens for 4 experts, twice: 3 slots each, and 1.5, to even.
  taken = jnp.reshape(weights > 0, (2, 15, 4))
  np.testing.assert_array_equal(taken[:, :8].sum(1), 3)
  np.testing.assert_array_equal(taken[:, 8:].sum(1), 2)


def draw(monkeypatch, folder, *args):
  """Calls the script as it stands in a folder."""
  monkeypatch.setattr(sys, 'argv', ['figures.py', *args])
  monkeypatch.syspath_prepend(folder)
  try:
    runpy.run_path(str(folder / 'figures.py'), run_name='__main__')
  finally:
    gin.clear_config()
    for name in ('measure', 'tokens'):
      sys.modules.pop(name, None)


def test_pictures_of_runs(tmp_path, monkeypatch):
  runs, rows = [], []
  for modality, kind, tiny in (
    ('language', 't5', tiny_runs),
    ('vision', 'vit', tiny_vit_runs),
  ):
    name = f'configs/upcycle_{kind}_laptop.gin'
    runs.append({'name': kind, 'config': name, 'bindings': {}})
    runs[-1]['modality'] = modality
    rows.append(sweep.entries({'scale': 'laptop', **runs[-1]}))
    config = tiny_scripts.ROOT / name
    paths = tiny.files(tmp_path / f'{kind}_files')
    run = tmp_path / rows[-1]['model_dir']
    bindings = tiny.bindings(config.read_text(), paths, run) + [
      'train.train.checkpoint_every = 1',
      'train.train.evaluations = None',
    ]
    flags = tiny_scripts.flags([config], bindings)
    assert tiny_scripts.main(monkeypatch, 'train.py', *flags) is None
  folder = tmp_path / 'experiments/21_routing'
  own = 'sweep.py', '*.md', '*.json*', 'figures', '__pycache__'
  sources = shutil.ignore_patterns(*own)
  shutil.copytree(FOLDER, folder, ignore=sources)
  (folder / 'sweep.py').write_text(f'SCALES = {{"laptop": {runs}}}')
  other = rows[0] | {'bindings': {'a.b': 1}, 'model_dir': 'runs/other'}
  for row in (*rows, other):
    results.append(folder / 'results.jsonl', row)
  draw(monkeypatch, folder, '--measure')
  data = json.loads((folder / 'data.json').read_text())
  for run in data.values():
    for layer, drift in run['drift'].items():
      assert [row['step'] for row in drift] == [1, 2]
      assert 0 < drift[0]['distance'][0] < drift[1]['distance'][0]
      assert sum(run['takers'][layer][-1]['shares']) == pytest.approx(1, 0.01)
      assert run['load'][layer]['steps'] == [1, 2]
  captions = json.loads((folder / 'figures/captions.json').read_text())
  first = {p.name: p.read_bytes() for p in folder.glob('figures/*.svg')}
  assert first.keys() == captions.keys()
  assert len(first) == 7
  # Again, without runs: the same pictures.
  draw(monkeypatch, folder)
  assert first == {p.name: p.read_bytes() for p in folder.glob('figures/*.svg')}
