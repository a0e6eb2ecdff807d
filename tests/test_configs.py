# SPDX-License-Identifier: Apache-2.0
"""Every gin file trains, at tiny size, and says what it says."""

import functools
import inspect
import json
from pathlib import Path
import re

import gin
import jax
import numpy as np
import pytest

from tests import tiny_runs, tiny_vit_runs
from upcycle import initialize, optim, results, routing, train
from upcycle.models import t5, vit

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(ROOT.glob('configs/*.gin'))


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  return {
    tiny: tiny.files(tmp_path_factory.mktemp('tiny'))
    for tiny in (tiny_runs, tiny_vit_runs)
  }


@pytest.fixture(scope='module', autouse=True)
def compile_once(tmp_path_factory):
  """Configs that differ in sizes alone are the same tiny program."""
  options = {
    'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('programs')),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_disable_most_optimizations': True,
  }
  before = {name: jax.config.values[name] for name in options}
  for name, value in options.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture(autouse=True)
def clean_gin():
  gin.add_config_file_search_path(str(ROOT))
  yield
  gin.clear_config()


def run(files, paths, model_dir, *changes):
  """Two tiny steps of some gin files; the state, and the rows of training."""
  text = ''.join(f'{file} {(ROOT / file).read_text()}' for file in files)
  tiny = tiny_vit_runs if 'vit' in text else tiny_runs
  bindings = tiny.bindings(text, paths[tiny], model_dir)
  gin.parse_config_files_and_bindings(files, [*bindings, *changes])
  state = gin.get_configurable(train.train)(config=gin.operative_config_str)
  return state, results.read(model_dir, 'train')


@pytest.mark.parametrize('file', CONFIGS, ids=lambda f: f.stem)
# SeqIO's and TensorFlow's own deprecations.
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_trains(file, paths, tmp_path, monkeypatch):
  if 'vit' in file.stem:
    tiny_vit_runs.fake_tfds(monkeypatch)
  text = file.read_text()
  # The command in its header names what it goes with.
  files = re.findall(r'--gin_file=(\S+)', text)
  assert files[-1] == f'configs/{file.name}'
  state, rows = run(files, paths, tmp_path / 'run')
  text = ''.join((ROOT / f).read_text() for f in files)
  continues = 'DENSE_CHECKPOINT =' in text
  assert int(state.step) == 2 + 1000 * continues
  sparse = any(name.endswith('/load') for name in rows[0])
  assert sparse == ('moe.gin' in text)
  begun = continues or 'finetune' in file.stem
  receipt = tmp_path / 'run/receipt.json'
  assert receipt.exists() == begun
  upcycled = begun and json.loads(receipt.read_text())['parameters']['expert']
  assert bool(upcycled) == (continues and sparse)
  text = (tmp_path / 'run/config.gin').read_text()
  assert 'num_steps = 2' in text and 'mlp_dim = 24' in text


@pytest.mark.parametrize('moe', ['@moe.MoeConfig()', 'None'])
def test_finetunes_what_is_sparse_or_dense(moe, paths, tmp_path):
  """From the run of upcycling, or of dense continuation; then on MNIST."""
  name = 'dense' if moe == 'None' else 'upcycle'
  source, _ = run([f'configs/{name}_vit_laptop.gin'], paths, tmp_path / 'run')
  gin.clear_config()
  state, rows = run(
    ['configs/finetune_vit_laptop.gin'],
    paths,
    tmp_path / 'finetune',
    f"CHECKPOINT = '{tmp_path / 'run'}'",
    f'vit.preset.moe = {moe}',
  )
  made = json.loads((tmp_path / 'finetune/receipt.json').read_text())
  fresh = {p for p, o in made['origin'].items() if o['kind'] == 'fresh'}
  assert fresh == {'head/kernel', 'head/bias'}
  assert made['source']['step'] == int(source.step) == 1002
  assert rows[-1]['step'] == int(state.step) == 2
  # Learned positions at a higher resolution: 3 x 3 patches instead of 2 x 2.
  positions = state.params['Transformer']['posembed_input']['pos_embedding']
  assert positions.shape == (1, 9, 16)
  for split, images in (('eval', 2), ('test', 20)):
    values = results.read(tmp_path / 'finetune', split)[-1]
    assert values['step'] == 2
    right = values['accuracy'] * images
    assert right == pytest.approx(round(right))


@pytest.mark.parametrize('size', ['small', 'base', 'large', 'xl'])
def test_the_papers_setting(size):
  file = ROOT / f'configs/upcycle_t5_{size}.gin'
  gin.parse_config_files_and_bindings([str(file)], [], finalize_config=False)
  config = gin.get_configurable(t5.preset)()
  published = t5.preset(f't5_1_1_{size}')
  assert config.emb_dim == published.emb_dim
  assert config.mlp_dim == published.mlp_dim
  odd = tuple(range(1, config.num_encoder_layers, 2))
  for stack in ('encoder', 'decoder'):
    layers = config.sparse_layers(stack)
    assert tuple(layers) == odd
    layer = layers[1]
    assert layer.num_experts == 32 and layer.capacity_factor == 2.0
    assert layer.router_std == 0.02 and layer.group_size == 4096
  assert config.encoder_moe.router.__name__ == 'expert_choice'
  assert config.encoder_moe.aux_weights == ()
  assert config.decoder_moe.router.__name__ == 'top_k'
  assert config.decoder_moe.aux_weights == (('load_balance', 0.01),)
  defaults = inspect.signature(routing.top_k).parameters
  assert gin.get_bindings(routing.top_k).get('k', defaults['k'].default) == 2


@pytest.mark.parametrize('size', ['b32', 'b16', 'l32', 'l16'])
def test_the_papers_vision_setting(size):
  file = ROOT / f'configs/upcycle_vit_{size}.gin'
  gin.parse_config_files_and_bindings([str(file)], [], finalize_config=False)
  config = gin.get_configurable(vit.preset)()
  published = vit.preset(f'vit_{size}')
  for field in ('width', 'depth', 'mlp_dim', 'num_heads', 'patch_size'):
    assert getattr(config, field) == getattr(published, field)
  assert (config.image_size, config.pool_type) == (224, 'gap')
  layers = config.sparse_layers()
  assert tuple(layers) == tuple(range(config.depth // 2, config.depth))
  layer = layers[config.depth - 1]
  assert layer.num_experts == 32 and layer.capacity_factor == 2.0
  assert layer.router_std == 0.02 and layer.group_size is None
  assert layer.router.__name__ == 'expert_choice'
  assert layer.aux_weights == ()
  bound = functools.partial(gin.get_bindings, resolve_references=False)
  assert bound(routing.expert_choice) == {'renormalize': True}
  assert bound(initialize.InitFrom)['optimizer_state'] == 'expand'
  decay = bound(optim.adamw)['weight_decay']
  assert decay == (('head/kernel', 3.0), ('.*/kernel', 0.03))
  assert bound(optim.adamw)['clip_norm'] == 1.0
  rate = gin.get_configurable(optim.rsqrt)()
  steps = np.array([5_000, 10_000, 20_000, 40_000])
  want = 1e-3 * np.array([0.5, 1, 2**-0.5, 0.5])
  np.testing.assert_allclose(rate(steps), want, rtol=1e-6)
