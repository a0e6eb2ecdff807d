# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders of ViT: names of two generations, layout, errors."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import GOLDEN, golden
from upcycle import checkpoints, trees

MODEL = 'model.safetensors'
BLOCK = 'vit.encoder.layer.2'


@pytest.fixture
def folder(tmp_path):
  return shutil.copytree(GOLDEN / 'hf_tiny_vit', tmp_path / 'vit')


@pytest.fixture(scope='module')
def want():
  return checkpoints.read(GOLDEN / 'hf_tiny_vit')


def edit(folder, rename=lambda name: name, add=None, **config):
  """Changes names (None: gone), tensors and the configuration of a folder."""
  named = {rename(k): x for k, x in load_file(folder / MODEL).items()}
  named = {k: x for k, x in named.items() if k is not None}
  save_file(named | (add or {}), folder / MODEL)
  file = folder / 'config.json'
  file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def error(path):
  with pytest.raises((ValueError, OSError)) as info:
    checkpoints.read(path)
  return str(info.value)


def assert_same(a, b):
  a, b = trees.flatten(a.params), trees.flatten(b.params)
  assert a.keys() == b.keys()
  for path, leaf in a.items():
    np.testing.assert_array_equal(b[path], leaf, err_msg=path)


def in_memory(name):
  """The name that transformers 5 has for a tensor once it is loaded."""
  for old, new in (
    ('vit.encoder.layer.', 'vit.layers.'),
    ('attention.attention.query', 'attention.q_proj'),
    ('attention.attention.key', 'attention.k_proj'),
    ('attention.attention.value', 'attention.v_proj'),
    ('attention.output.dense', 'attention.o_proj'),
    ('intermediate.dense', 'mlp.fc1'),
    ('output.dense', 'mlp.fc2'),
  ):
    name = name.replace(old, new)
  return name


def test_facts(want):
  assert want.metadata['model'] == {
    'image_size': 16,
    'patch_size': 4,
    'channels': 3,
    'width': 32,
    'depth': 4,
    'mlp_dim': 64,
    'num_heads': 4,
    'pool_type': 'tok',
    'representation_size': None,
    'num_classes': 10,
    'positions': 'learned',
    'qk_norm': False,
    'activation': 'gelu_exact',
    'norm_epsilon': 1e-12,
  }
  assert (want.step, want.opt_state) == (0, None)


def test_names_are_those_of_vit_jax(want):
  other = checkpoints.read(GOLDEN / 'vit_jax_tiny.npz')
  assert not trees.diff(other.params, want.params, dtypes=True)


def test_inputs_come_first_and_heads_have_an_axis(want):
  source = load_file(GOLDEN / 'hf_tiny_vit' / MODEL)
  x = np.random.default_rng(0).standard_normal((5, 32))
  block = want.params['Transformer']['encoderblock_2']
  attention = block['MultiHeadDotProductAttention_0']
  theirs = f'{BLOCK}.attention.attention.value'
  np.testing.assert_allclose(
    np.einsum('bm,mhd->bhd', x, np.asarray(attention['value']['kernel']))
    + np.asarray(attention['value']['bias']),
    (x @ source[f'{theirs}.weight'].T + source[f'{theirs}.bias'])
    .reshape(5, 4, 8),
    rtol=1e-6,
  )  # fmt: skip
  np.testing.assert_allclose(
    np.einsum('bhd,hdm->bm', x.reshape(5, 4, 8), attention['out']['kernel']),
    x @ source[f'{BLOCK}.attention.output.dense.weight'].T,
    rtol=1e-6,
  )
  patch = source['vit.embeddings.patch_embeddings.projection.weight']
  kernel = np.asarray(want.params['embedding']['kernel'])
  assert kernel[3, 1, 2, 7] == patch[7, 2, 3, 1]


def test_names_of_both_generations(folder, want):
  _, meta = golden('hf_vit')
  assert set(load_file(folder / MODEL)) == set(meta['on_disk_keys'])
  edit(folder, in_memory)
  assert set(load_file(folder / MODEL)) == set(meta['in_memory_keys_v5'])
  assert_same(want, checkpoints.read(folder))


def test_a_model_without_its_classifier(folder, want):
  """ViTModel: no prefix, no classifier, and a pooler that is not used."""

  def bare(name):
    is_head = name.startswith('classifier')
    return None if is_head else name.removeprefix('vit.')

  unused = {
    'pooler.dense.weight': np.ones((32, 32)),
    'pooler.dense.bias': np.ones(32),
    'embeddings.mask_token': np.ones((1, 1, 32)),
  }
  edit(folder, bare, unused)
  got = checkpoints.read(folder)
  params = {k: x for k, x in want.params.items() if k != 'head'}
  assert not trees.diff(params, got.params)
  assert got.metadata['model'] == want.metadata['model'] | {'num_classes': None}


@pytest.mark.parametrize(
  ('act', 'ours'), [('gelu_new', 'gelu'), ('gelu_pytorch_tanh', 'gelu')]
)
def test_the_gelu_and_the_epsilon_are_the_configs(folder, act, ours):
  edit(folder, hidden_act=act, layer_norm_eps=1e-6)
  facts = checkpoints.read(folder).metadata['model']
  assert (facts['activation'], facts['norm_epsilon']) == (ours, 1e-6)


def test_models_that_are_none_of_ours(folder):
  edit(folder, hidden_act='swish', qkv_bias=False, image_size=[16, 32])
  text = error(folder)
  assert 'image_size=[16, 32], hidden_act=swish, qkv_bias=False' in text


def test_unknown_and_doubled_names_are_listed(folder):
  x = np.ones(64, np.float32)
  edit(folder, add={'decoder.0.bias': x, 'vit.layers.1.mlp.fc1.bias': x})
  text = error(folder)
  assert 'unknown: decoder.0.bias' in text
  assert 'twice: vit.' in text
  assert 'both Transformer/encoderblock_1/MlpBlock_0/Dense_0/bias' in text


def test_tensors_have_the_shapes_that_the_config_says(folder):
  """As many elements are not enough: nothing is turned or split to fit."""
  name = f'{BLOCK}.intermediate.dense.weight'
  turned = load_file(folder / MODEL)[name].T.copy()
  drop = f'{BLOCK}.layernorm_after.bias'
  rename = lambda x: None if x == drop else x  # noqa: E731
  key = f'{BLOCK}.attention.attention.key.weight'
  add = {name: turned, key: np.ones((16, 64), np.float32)}
  edit(folder, rename, add, num_hidden_layers=5, image_size=20)
  text = error(folder)
  assert 'key/kernel is float32[64, 16], expected float32[32, 4, 8]' in text
  assert 'Dense_0/kernel is float32[64, 32], expected float32[32, 64]' in text
  assert 'missing: Transformer/encoderblock_2/LayerNorm_1/bias' in text
  assert 'missing: Transformer/encoderblock_4/MlpBlock_0/Dense_0/bias' in text
  assert 'pos_embedding is float32[1, 17, 32], expected float32[1, 26' in text
