# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders of T5, and what is at a path that is no checkpoint."""

import json
import re
import shutil
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import GOLDEN, golden
from upcycle import checkpoints, trees

MODEL = 'model.safetensors'
INDEX = f'{MODEL}.index.json'


@pytest.fixture(params=['hf_t5_v1_0', 'hf_t5_v1_1'])
def either(request, tmp_path):
  return shutil.copytree(GOLDEN / request.param, tmp_path / request.param)


@pytest.fixture
def v1_0(tmp_path):
  return shutil.copytree(GOLDEN / 'hf_t5_v1_0', tmp_path / 'v1_0')


@pytest.fixture
def v1_1(tmp_path):
  return shutil.copytree(GOLDEN / 'hf_t5_v1_1', tmp_path / 'v1_1')


def edit(folder, add=None, drop=(), **config):
  """Changes the tensors and the configuration of a folder."""
  tensors = {**load_file(folder / MODEL), **(add or {})}
  save_file({k: v for k, v in tensors.items() if k not in drop}, folder / MODEL)
  file = folder / 'config.json'
  file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def shard(folder):
  """Splits the file in two with an index, as large models come."""
  tensors = sorted(load_file(folder / MODEL).items())
  files = {}
  for i, part in enumerate((tensors[:20], tensors[20:]), 1):
    name = f'model-0000{i}-of-00002.safetensors'
    save_file(dict(part), folder / name)
    files |= dict.fromkeys(dict(part), name)
  (folder / MODEL).unlink()
  (folder / INDEX).write_text(json.dumps({'weight_map': files}))


def error(path):
  with pytest.raises((ValueError, OSError)) as info:
    checkpoints.read(path)
  return str(info.value)


def assert_same(a, b):
  a, b = trees.flatten(a.params), trees.flatten(b.params)
  assert a.keys() == b.keys()
  for path, leaf in a.items():
    np.testing.assert_array_equal(b[path], leaf, err_msg=path)


def test_names_are_those_of_t5x(either):
  """Names of the real T5X checkpoint, less layers; axes of the gradients."""
  found = checkpoints.read(either)
  got = trees.flatten(found.params)
  names = trees.flatten(
    checkpoints.read(GOLDEN / 't5x_tiny_dense_checkpoint').params
  )
  deeper = re.compile(r'encoder/layers_[23]/.*|decoder/layers_3/.*')
  want = {name for name in names if not deeper.fullmatch(name)}
  if either.name == 'hf_t5_v1_0':
    want = {re.sub('wi_[01]', 'wi', x) for x in want}
    want -= {'decoder/logits_dense/kernel'}
  assert got.keys() == want
  arrays, _ = golden(either.name)
  grads = {k[6:]: x for k, x in arrays.items() if k.startswith('grads/')}
  assert grads
  for path, grad in grads.items():
    assert got[path].shape == np.asarray(got[path]).shape == grad.shape
  assert (found.step, found.opt_state) == (0, None)


def test_matrices_are_transposed_and_the_embedding_is_not(v1_1):
  source, got = load_file(v1_1 / MODEL), checkpoints.read(v1_1).params
  layer = got['decoder']['layers_2']
  for ours, theirs in (
    (layer['mlp']['wi_1']['kernel'], 'layer.2.DenseReluDense.wi_1'),
    (layer['encoder_decoder_attention']['out']['kernel'],
     'layer.1.EncDecAttention.o'),
  ):  # fmt: skip
    want = source[f'decoder.block.2.{theirs}.weight'].T
    np.testing.assert_array_equal(ours, want)
  table = got['token_embedder']['embedding']
  np.testing.assert_array_equal(table, source['shared.weight'])
  head = got['decoder']['logits_dense']['kernel']
  np.testing.assert_array_equal(head, source['lm_head.weight'].T)


@pytest.mark.parametrize(
  ('version', 'activations', 'tied'),
  [('hf_t5_v1_0', ('relu',), True), ('hf_t5_v1_1', ('gelu', 'linear'), False)],
)
def test_facts_of_both_generations(version, activations, tied):
  facts = checkpoints.read(GOLDEN / version).metadata['model']
  assert facts == {
    'vocab_size': 96,
    'emb_dim': 32,
    'num_heads': 3,
    'num_encoder_layers': 2,
    'num_decoder_layers': 3,
    'head_dim': 8,
    'mlp_dim': 48,
    'mlp_activations': activations,
    'logits_via_embedding': tied,
  }


def test_published_configs_say_less_and_older_words(v1_0, v1_1):
  """Before transformers 5: no scale_decoder_outputs, and 1.0 has defaults."""
  for folder, gone in (
    (v1_0, {'scale_decoder_outputs', 'tie_word_embeddings', 'feed_forward_proj',
            'num_decoder_layers'}),
    (v1_1, {'scale_decoder_outputs'}),
  ):  # fmt: skip
    want = checkpoints.read(folder)
    config = json.loads((folder / 'config.json').read_text())
    config['tie_word_embeddings'] = folder is v1_0
    config = {k: v for k, v in config.items() if k not in gone}
    (folder / 'config.json').write_text(json.dumps(config))
    got = checkpoints.read(folder)
    assert_same(want, got)
    model = want.metadata['model']
    if 'num_decoder_layers' in gone:
      model = {**model, 'num_decoder_layers': 2}
    assert got.metadata['model'] == model


def test_mt5_is_never_tied(v1_1):
  edit(v1_1, model_type='mt5', scale_decoder_outputs=True)
  assert not checkpoints.read(v1_1).metadata['model']['logits_via_embedding']


def test_copies_of_the_embedding_and_unused_tensors_are_dropped(v1_0):
  want = checkpoints.read(GOLDEN / 'hf_t5_v1_0')
  table = load_file(v1_0 / MODEL)['shared.weight']
  names = ['encoder.embed_tokens', 'decoder.embed_tokens', 'lm_head']
  unused = (
    'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
  )
  copies = {f'{name}.weight': table for name in names}
  edit(v1_0, {**copies, unused: table[:, :3]})
  assert_same(want, checkpoints.read(v1_0))
  edit(v1_0, drop=['shared.weight'])
  assert_same(want, checkpoints.read(v1_0))


def test_a_copy_that_differs_is_refused(v1_0):
  table = load_file(v1_0 / MODEL)['shared.weight']
  edit(v1_0, {'lm_head.weight': table + 1})
  assert 'lm_head.weight differs from shared.weight' in error(v1_0)


def test_shards_are_one_model(either):
  want = checkpoints.read(GOLDEN / either.name)
  shard(either)
  for path in (either, either / INDEX):
    assert_same(want, checkpoints.read(path))


def test_a_path_to_the_file_reads_it(v1_1):
  assert_same(checkpoints.read(v1_1), checkpoints.read(v1_1 / MODEL))


def test_bfloat16_is_kept(v1_1):
  tensors = load_file(v1_1 / MODEL)
  edit(v1_1, {k: x.astype(ml_dtypes.bfloat16) for k, x in tensors.items()})
  leaf = checkpoints.read(v1_1).params['encoder']['encoder_norm']['scale']
  assert leaf.dtype == np.asarray(leaf).dtype == ml_dtypes.bfloat16


def test_unknown_names_are_all_listed(v1_1):
  x = np.ones(3, np.float32)
  edit(v1_1, {'encoder.block.1.layer.1.router.weight': x, 'pooler.bias': x})
  text = error(v1_1)
  assert '2 tensors that have no place' in text
  assert 'unknown: encoder.block.1.layer.1.router.weight\n' in text
  assert 'unknown: pooler.bias' in text


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'model_type': 'bert'},
     "model_type='bert'; what can be read is t5, mt5, vit"),
    ({'feed_forward_proj': 'gated-silu'}, 'feed_forward_proj=gated-silu'),
    ({'relative_attention_max_distance': 64, 'layer_norm_epsilon': 1e-5},
     'relative_attention_max_distance=64, layer_norm_epsilon=1e-05'),
  ],
)  # fmt: skip
def test_models_that_are_none_of_ours(v1_1, config, message):
  edit(v1_1, **config)
  assert message in error(v1_1)


@pytest.mark.parametrize('keep', [-1, 1000, 4, 0])
def test_a_truncated_file(v1_1, keep):
  file = v1_1 / MODEL
  file.write_bytes(file.read_bytes()[:keep])
  assert f'damaged; copy it again:\n  {file}' in error(v1_1)


def test_missing_and_incomplete_shards_are_all_listed(v1_1):
  shard(v1_1)
  first, second = sorted(v1_1.glob('model-*'))
  first.unlink()
  save_file({'shared.weight': np.ones((3, 2))}, second)
  text = error(v1_1)
  assert str(first) in text
  assert f'{second}: lacks lm_head.weight' in text


def test_a_config_that_is_missing_or_truncated(v1_1):
  (v1_1 / 'config.json').write_text('{"model_type": ')
  assert 'config.json is truncated' in error(v1_1)
  (v1_1 / 'config.json').unlink()
  assert 'config.json is missing' in error(v1_1)


@pytest.mark.parametrize(
  'name', ['pytorch_model.bin', 'a.pt', 'a.pth', 'a.ckpt']
)
def test_pickles_are_refused_by_name(tmp_path, name):
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / name).write_bytes(b'not even one')
  for path in (tmp_path, tmp_path / name):
    text = error(path)
    assert name in text
    assert 'safe_serialization=True' in text


def test_pickles_are_refused_by_content(tmp_path):
  (tmp_path / 'weights').write_bytes(b'\x80\x04\x95')
  with zipfile.ZipFile(tmp_path / 'archive', 'w') as archive:
    archive.writestr('archive/data.pkl', '')
  for name in ('weights', 'archive'):
    assert 'is a pickle' in error(tmp_path / name)


def test_a_folder_with_both_reads_the_safetensors(v1_1):
  (v1_1 / 'pytorch_model.bin').write_bytes(b'')
  assert_same(checkpoints.read(GOLDEN / 'hf_t5_v1_1'), checkpoints.read(v1_1))


def test_paths_with_nothing_known(tmp_path):
  assert 'There is no checkpoint at' in error(tmp_path / 'nowhere')
  assert 'it is empty' in error(tmp_path)
  (tmp_path / 'notes.txt').write_text('hello')
  assert 'holds notes.txt' in error(tmp_path)
  assert 'no checkpoint of a known format' in error(tmp_path / 'notes.txt')
