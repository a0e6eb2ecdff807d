# SPDX-License-Identifier: Apache-2.0
"""Damaged T5X checkpoints: one error that names all that is wrong."""

import json
import re
import shutil

import numpy as np
import pytest

from tests.conftest import GOLDEN
from upcycle import checkpoints
from upcycle.checkpoints import t5x

WI = 'target.encoder.layers_0.mlp.wi_0.kernel'
SCALE = 'target.encoder.encoder_norm.scale'
SLOT = 'state.param_states.encoder.layers_0.mlp.wi_0.kernel.v'


@pytest.fixture
def folder(tmp_path):
  source = GOLDEN / 't5x_tiny_dense_checkpoint' / 'checkpoint_1000'
  return shutil.copytree(source, tmp_path / 'checkpoint_1000')


def error(folder):
  with pytest.raises(ValueError, match=re.escape(str(folder))) as info:
    checkpoints.read(folder)
  return str(info.value)


def truncate(file, keep):
  file.write_bytes(file.read_bytes()[:keep])


def test_missing_chunks_and_arrays_are_all_listed(folder):
  (folder / WI / '0.0').unlink()
  (folder / SLOT / '0.0').unlink()
  shutil.rmtree(folder / SCALE)
  text = error(folder)
  assert 'damaged in 3 places' in text
  for line in (
    f'{WI}/0.0: missing',
    f'{SLOT}/0.0: missing',
    f'{SCALE}/.zarray',
  ):
    assert line in text


@pytest.mark.parametrize('keep', [-1, -5, 100, 3, 0])
def test_truncated_gzip_chunks_are_found_without_reading_them(folder, keep):
  truncate(folder / WI / '0.0', keep)
  text = error(folder)
  assert f'{WI}/0.0: holds' in text
  assert 'of 8192' in text


@pytest.mark.parametrize('keep', [-1, 0])
def test_truncated_plain_chunks_are_found(tmp_path, keep):
  tree = {'a': np.ones((3, 2**20), np.float32), 'b': np.ones(4)}
  folder = t5x.write(tmp_path, tree, 1)
  truncate(folder / 'target.a' / '1.0', keep)
  assert 'target.a/1.0: holds' in error(folder)


@pytest.mark.parametrize('compression', ['gzip', 'zstd', 'blosc'])
def test_damage_inside_a_chunk_is_named_when_it_is_read(tmp_path, compression):
  tree = {'a': np.random.default_rng(0).standard_normal((64, 64))}
  folder = t5x.write(tmp_path, tree, 1, compression=compression)
  chunk = folder / 'target.a' / '0.0'
  content = chunk.read_bytes()
  chunk.write_bytes(b'\0' * 200 + content[200:])
  leaf = checkpoints.read(folder).params['a']
  with pytest.raises(ValueError, match=r"'target\.a'(.|\n)*0\.0"):
    np.asarray(leaf)


def test_a_chunk_lost_after_the_check_is_no_zeros(folder):
  leaf = checkpoints.read(folder).params['encoder']['encoder_norm']['scale']
  (folder / SCALE / '0').unlink()
  with pytest.raises(ValueError, match='is missing'):
    np.asarray(leaf)


def test_metadata_that_is_none_or_of_another_shape(folder):
  (folder / WI / '.zarray').write_text('{"shape": [32')
  other = json.loads((folder / SCALE / '.zarray').read_text())
  other['shape'] = other['chunks'] = [16]
  (folder / SCALE / '.zarray').write_text(json.dumps(other))
  text = error(folder)
  assert f'{WI}/.zarray: is no zarr metadata' in text
  assert f'{SCALE}: is [16], the index says [32]' in text


@pytest.mark.parametrize('keep', [0, 1, 20, 5000, -1])
def test_a_truncated_index(folder, keep):
  truncate(folder / 'checkpoint', keep)
  assert 'truncated or no msgpack' in error(folder)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'model_checkpoint_path: "model.ckpt-0"\n', 'TensorFlow checkpoint'),
    (b'all_model_checkpoint_paths', 'truncated or no msgpack'),
    (b'\x81\xa1a\x01', "no 'target'"),
    (b'\x01', 'truncated or no msgpack'),
  ],
)
def test_an_index_of_something_else(folder, content, message):
  (folder / 'checkpoint').write_bytes(content)
  assert message in error(folder)
