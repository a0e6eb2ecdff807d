# SPDX-License-Identifier: Apache-2.0
"""Bad input to the scripts, of vision: one clear error, and nothing written."""

import numpy as np
import pytest

from tests import tiny_runs, tiny_scripts, tiny_vit_runs
from tests.conftest import GOLDEN

DENSE = 'configs/dense_vit_laptop.gin'
UPCYCLE = 'configs/upcycle_vit_laptop.gin'
FINETUNE = 'configs/finetune_vit_laptop.gin'
SCRATCH = 'configs/scratch_moe_vit_laptop.gin'
TFDS = 'configs/scratch_moe_vit_b16.gin'


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  return tiny_vit_runs.files(tmp_path_factory.mktemp('tiny'))


@pytest.fixture(scope='module')
def t5_paths(tmp_path_factory):
  return tiny_runs.files(tmp_path_factory.mktemp('tiny'))


def train(monkeypatch, file, paths, model_dir, *changes, tiny=tiny_vit_runs):
  """What scripts/train.py exits with."""
  text = file + (tiny_scripts.ROOT / file).read_text()
  lines = tiny.bindings(text, paths, model_dir)
  args = tiny_scripts.flags([file], [*lines, *changes])
  error = tiny_scripts.main(monkeypatch, 'train.py', *args)
  assert not model_dir.exists()
  return error


@pytest.mark.parametrize(
  'change, messages',
  [
    (
      'vit.preset.image_size = 16',
      ('image_size=8, the model 16', 'InitFrom.resize_positions = True'),
    ),
    (
      'vit.preset.patch_size = 2',
      ('patch_size=4, the model 2', 'mismatch: embedding/kernel'),
    ),
    (
      'vit.preset.num_classes = 7',
      ('num_classes=5, the model 7', "InitFrom.replace = ('head/.*',)"),
    ),
    (
      'vit.preset.num_classes = None',
      ('num_classes=5, the model None', "InitFrom.replace = ('head/.*',)"),
    ),
    ('vit.preset.channels = 3', ('channels=1, the model 3',)),
    (
      "vit.preset.pool_type = 'map'",
      ("pool_type='gap', the model 'map'", 'missing source: MAPHead_0/probe'),
    ),
    (
      'images.batches.num_classes = 3',
      ('glyphs, train has 5 classes, the model only 3',),
    ),
  ],
)
def test_a_checkpoint_or_data_of_another_shape(
  change, messages, paths, tmp_path, monkeypatch
):
  error = train(monkeypatch, DENSE, paths, tmp_path / 'run', change)
  for message in messages:
    assert message in error


def test_images_of_another_size(paths, tmp_path, monkeypatch):
  changes = ('vit.preset.image_size = 16',)
  error = train(monkeypatch, SCRATCH, paths, tmp_path / 'run', *changes)
  assert '(8, 8, 1) came to a ViT for (16, 16, 1)' in error


def test_a_dense_checkpoint_is_not_upcycled_to_finetune_it(
  paths, tmp_path, monkeypatch
):
  dense = {'sparse': paths['dense']}
  error = train(monkeypatch, FINETUNE, paths | dense, tmp_path / 'run')
  assert 'where the model has experts: Transformer/encoderblock_1.' in error
  assert 'vit.preset.moe = None' in error


def test_a_t5_checkpoint(paths, t5_paths, tmp_path, monkeypatch):
  error = train(monkeypatch, UPCYCLE, paths | t5_paths, tmp_path / 'run')
  assert 'holds another kind of model: token_embedder' in error
  error = train(
    monkeypatch,
    'configs/upcycle_t5_laptop.gin',
    t5_paths | {'dense': paths['dense']},
    tmp_path / 'run',
    tiny=tiny_runs,
  )
  assert 'holds another kind of model' in error and 'of T5Config has' in error


def test_another_gelu(paths, tmp_path, monkeypatch):
  hf = {'dense': str(GOLDEN / 'hf_tiny_vit')}
  error = train(monkeypatch, DENSE, paths | hf, tmp_path / 'run')
  assert 'Set in ViTConfig: ' in error
  assert "activation='gelu_exact' (is 'gelu')" in error


def test_pixels_that_are_no_numbers(paths, tmp_path, monkeypatch):
  pixels = tiny_vit_runs.pictures().astype(np.float32)
  pixels[[3, 7], 2, 2] = np.nan
  tiny_vit_runs.local(tmp_path, 'glyphs', pixels)
  changes = (
    f"train/images.local.directory = '{tmp_path}'",
    'images.batches.batch_size = 20',
    'train/images.batches.shuffle = False',
    'train/images.batches.transforms = (@augment.value_range,)',
  )
  error = train(monkeypatch, SCRATCH, paths, tmp_path / 'run', *changes)
  assert 'images [3, 7] have pixels that are NaN' in error


def test_labels_outside_the_classes(paths, tmp_path, monkeypatch):
  records = tiny_vit_runs.Records()
  records[4]['label'] = 5
  tiny_vit_runs.fake_tfds(monkeypatch, records)
  changes = (
    'images.batches.batch_size = 20',
    'train/images.batches.shuffle = False',
  )
  error = train(monkeypatch, TFDS, paths, tmp_path / 'run', *changes)
  assert 'images [4] have labels outside 0 ... 4' in error


def test_a_class_without_images(paths, tmp_path, monkeypatch):
  (tmp_path / 'pictures/train/ant').mkdir(parents=True)
  (tmp_path / 'pictures/train/bee').mkdir()
  (tmp_path / 'own.gin').write_text(
    'from __gin__ import dynamic_registration\n'
    'from upcycle.data import images\n'
    'train/images.batches.source = @images.folder()\n'
    f"images.folder.path = '{tmp_path / 'pictures'}'\n"
  )
  lines = tiny_vit_runs.bindings(DENSE, paths, tmp_path / 'run')
  lines += [f"DENSE_CHECKPOINT = '{paths['dense']}'"]
  args = tiny_scripts.flags([DENSE, tmp_path / 'own.gin'], lines)
  error = tiny_scripts.main(monkeypatch, 'train.py', *args)
  assert 'ant: no images' in error and 'bee: no images' in error
