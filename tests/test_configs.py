# SPDX-License-Identifier: Apache-2.0
"""Every gin file trains, at tiny size, and says what it says."""

import inspect
from pathlib import Path

import gin
import pytest

from tests import tiny_runs
from upcycle import results, routing, train
from upcycle.models import t5

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(ROOT.glob('configs/*.gin'))


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  return tiny_runs.files(tmp_path_factory.mktemp('tiny'))


@pytest.fixture(autouse=True)
def clean_gin():
  gin.add_config_file_search_path(str(ROOT))
  yield
  gin.clear_config()


@pytest.mark.parametrize('file', CONFIGS, ids=lambda f: f.stem)
# SeqIO's and TensorFlow's own deprecations.
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_trains(file, paths, tmp_path):
  bindings = tiny_runs.bindings(file.read_text(), paths, tmp_path / 'run')
  gin.parse_config_files_and_bindings([str(file)], bindings)
  state = gin.get_configurable(train.train)(config=gin.operative_config_str)
  start = 1000 if 'DENSE_CHECKPOINT' in file.read_text() else 0
  assert int(state.step) == start + 2
  rows = results.read(tmp_path / 'run', 'train')
  sparse = any('mlp/load' in name for name in rows[0])
  assert sparse == file.stem.startswith(('upcycle', 'scratch_moe'))
  assert (tmp_path / 'run/receipt.json').exists() == (start > 0)
  text = (tmp_path / 'run/config.gin').read_text()
  assert 'num_steps = 2' in text and 'mlp_dim = 24' in text


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
