# SPDX-License-Identifier: Apache-2.0
"""Gin files train, at tiny size, and say what they say."""

import copy
import inspect
import json
import math
from pathlib import Path
import re
import textwrap

import gin
import jax
import numpy as np
from PIL import Image
import pytest

from tests import tiny_runs, tiny_vit_runs
from upcycle import initialize, optim, results, routing, train
from upcycle.data import images, seqio_evaluation, seqio_tasks
from upcycle.models import t5, vit

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(ROOT.glob('configs/*.gin'))


def body(file):
  """A config without its comments and the name and depth of its model."""
  text = re.sub(r'(?m)^#.*\n', '', file.read_text())
  size = r"preset\.(name|depth|num_\w+_layers) = '?\w+'?"
  return re.sub(size, r'preset.\1', text)


# Models of other sizes are the same tiny one here: of equal files the first.
DIFFERENT = sorted({body(file): file for file in reversed(CONFIGS)}.values())


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  return {
    tiny: tiny.files(tmp_path_factory.mktemp('tiny'))
    for tiny in (tiny_runs, tiny_vit_runs)
  }


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


@pytest.mark.parametrize('file', DIFFERENT, ids=lambda f: f.stem)
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
  finetunes_t5 = 't5_finetune.gin' in text
  assert int(state.step) == 2 + 1000 * (continues or finetunes_t5)
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
  for split, count in (('eval', 2), ('test', 20)):
    values = results.read(tmp_path / 'finetune', split)[-1]
    assert values['step'] == 2
    right = values['accuracy'] * count
    assert right == pytest.approx(round(right))


def parse(*files, **macros):
  """Gin files, of configs/ or by their paths, at full size."""
  lines = [f'{name} = {value!r}' for name, value in macros.items()]
  files = [str(ROOT / 'configs' / file) for file in files]
  gin.parse_config_files_and_bindings(files, lines)


def bound(function, name):
  """What gin gives to a parameter: what is bound, or else its default."""
  found = gin.get_bindings(function, resolve_references=False)
  if name not in found:
    return inspect.signature(function).parameters[name].default
  # A gin reference becomes its value when it is copied.
  return copy.deepcopy(found[name])


def test_augmentation_that_no_config_uses(tmp_path, monkeypatch):
  """RandAugment and mixup, which V-MoE trains with."""
  tiny_vit_runs.fake_tfds(monkeypatch)
  own = tmp_path / 'own.gin'
  own.write_text(
    'from __gin__ import dynamic_registration\n'
    'from upcycle.data import augment\n'
    'from upcycle.data import images\n'
    'from upcycle.data import rand_augment\n'
    'train/images.batches.transforms = (\n'
    '  @augment.inception_crop, @augment.flip, @rand_augment.rand_augment,\n'
    '  @augment.value_range)\n'
    'train/images.batches.mixup = 0.2\n'
  )
  parse('scratch_moe_vit_b16.gin', own, MODEL_DIR='run', BATCH_SIZE=4)
  batch = next(iter(bound(train.train, 'train_data')))
  assert batch['label_weights'].shape == (4, 2)
  assert 'for rand_augment.rand_augment:' in gin.operative_config_str()


@pytest.mark.parametrize(
  'file', ['scratch_moe_vit_b16.gin', 'finetune_vit_b16.gin']
)
def test_any_data_set_of_tfds(file, monkeypatch):
  asked = tiny_vit_runs.fake_tfds(monkeypatch)
  macros = {'TRAIN_SPLIT': 'a', 'EVAL_SPLIT': 'b'}
  if 'finetune' in file:
    macros |= {'TEST_SPLIT': 'c', 'CHECKPOINT': 'run'}
  parse(file, MODEL_DIR='run', DATASET='cats', NUM_CLASSES=7, **macros)
  for name in ('train_data', 'eval_data', 'evaluations'):
    bound(train.train, name)
  splits = [macros[x] for x in macros if x.endswith('SPLIT')]
  assert asked == [('cats', split) for split in splits]
  assert bound(vit.preset, 'num_classes') == 7
  assert bound(images.batches, 'num_classes') == 7


def test_folders_of_images_as_the_readme_says(tmp_path):
  for split in ('train', 'validation'):
    folder = tmp_path / split / 'cat'
    folder.mkdir(parents=True)
    Image.new('RGB', (9, 9)).save(folder / f'{split}.png')
  readme = (ROOT / 'README.md').read_text()
  blocks = re.findall(r'(?:^    .*\n)+', readme, re.MULTILINE)
  (block,) = [x for x in blocks if 'images.folder' in x]
  own = tmp_path / 'own.gin'
  own.write_text(
    textwrap.dedent(block).replace('.../imagenet21k', str(tmp_path))
  )
  parse('scratch_moe_vit_b16.gin', own, MODEL_DIR='run')
  for name, split in (('train_data', 'train'), ('eval_data', 'validation')):
    stream = bound(train.train, name)
    assert stream.name == str(tmp_path / split)


@pytest.mark.parametrize('size', ['b32', 'b16', 'l32', 'l16'])
def test_the_papers_finetuning(size, monkeypatch):
  asked = tiny_vit_runs.fake_tfds(monkeypatch)
  parse(f'finetune_vit_{size}.gin', MODEL_DIR='run', CHECKPOINT='run')
  assert bound(vit.preset, 'image_size') == 384
  assert bound(train.train, 'num_steps') == 10_000
  assert bound(optim.sgd, 'momentum') == 0.9
  assert bound(optim.sgd, 'clip_norm') == 10.0
  rate = gin.get_configurable(optim.cosine)()
  np.testing.assert_allclose(
    rate(np.array([0, 200, 400, 5_200, 10_000])),
    0.003 * np.array([0, 0.5, 1, 0.5, 0]),
    atol=1e-8,
  )
  init = bound(train.train, 'init_from')
  assert init.replace == ('head/.*',) and init.resize_positions
  assert (init.step, init.upcycle) == (0, False)
  for name in ('train_data', 'eval_data', 'evaluations'):
    bound(train.train, name)
  splits = ('train[:99%]', 'train[99%:]', 'validation')
  assert asked == [('imagenet2012', split) for split in splits]
  assert bound(images.batches, 'batch_size') == 512


@pytest.mark.parametrize('size', ['b32', 'b16', 'l32', 'l16'])
@pytest.mark.parametrize(
  'kinds, copies',
  [(['dense'], 4), (['upcycle', 'scratch_moe'], 4), (['finetune'], 3)],
)
def test_headers_say_what_memory_it_takes(kinds, copies, size):
  """Float32 parameters, gradients, and two moments or one."""
  files = [ROOT / f'configs/{kind}_vit_{size}.gin' for kind in kinds]
  found = [re.search(r'([\d.]+) GB', f.read_text())[1] for f in files]
  gin.parse_config_files_and_bindings(
    [str(files[0])], [], finalize_config=False
  )
  model = vit.ViT(gin.get_configurable(vit.preset)())
  shapes = jax.tree.leaves(initialize.param_shapes(model))
  size = copies * 4 * sum(math.prod(x.shape) for x in shapes) / 1e9
  assert found == [f'{size:.1f}'] * len(files)


def test_the_papers_few_shot(monkeypatch):
  asked = tiny_vit_runs.fake_tfds(monkeypatch)
  macros = dict.fromkeys(('MODEL_DIR', 'DENSE_CHECKPOINT'), 'run')
  parse('upcycle_vit_b16.gin', 'fewshot_vit.gin', **macros)
  evaluate = bound(train.train, 'evaluations')['fewshot']
  assert evaluate.seeds == 5 and evaluate.l2 == (1024.0,)
  assert 10 in evaluate.shots
  image = np.arange(256**2 * 3).reshape(256, 256, 3).astype(np.uint8)
  np.testing.assert_allclose(
    evaluate.transform(image, 224, 3),
    image[16:240, 16:240] / 127.5 - 1,
    atol=1e-6,
  )
  assert len(evaluate.sets) == 9 and len(asked) == 18
  for (name, split), (same, test) in zip(asked[::2], asked[1::2], strict=True):
    assert name == same
    rest = re.sub(r'\[:(\d+)\]', r'[\1:]', split)
    assert test == rest != split or test in ('test', 'validation')


def test_few_shot_of_the_laptop_tests_on_other_images(paths):
  files = 'upcycle_vit_laptop.gin', 'fewshot_vit_laptop.gin'
  macros = dict.fromkeys(('MODEL_DIR', 'DENSE_CHECKPOINT'), 'run')
  parse(*files, DATA=paths[tiny_vit_runs]['data'], **macros)
  evaluate = bound(train.train, 'evaluations')['fewshot']
  assert evaluate.seeds == 5 and evaluate.l2 == (1024.0,)
  for train_images, test_images in evaluate.sets.values():
    folder, split = train_images.name.rsplit(', ', 1)
    assert split == 'train' and test_images.name == f'{folder}, test'


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
  assert bound(routing.top_k, 'k') == 2


@pytest.mark.parametrize('size', ['small', 'base', 'large', 'xl'])
def test_superglue_is_read_and_scored_in_one_vocabulary(size):
  macros = dict.fromkeys(('MODEL_DIR', 'CHECKPOINT'), 'run')
  parse(f'finetune_t5_{size}.gin', VOCABULARY='words.model', **macros)
  for reader in (seqio_tasks.seqio_mixture, seqio_evaluation.SeqioEvaluation):
    assert bound(reader, 'vocabulary_path') == 'words.model'
  steps = bound(train.train, 'num_steps')
  assert steps % bound(train.train, 'evaluations_every') == 0


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
  assert bound(routing.expert_choice, 'renormalize') is True
  assert bound(initialize.InitFrom, 'optimizer_state') == 'expand'
  assert bound(images.batches, 'batch_size') == 4096
  decay = bound(optim.adamw, 'weight_decay')
  assert decay == (('head/kernel', 3.0), ('.*/kernel', 0.03))
  assert bound(optim.adamw, 'clip_norm') == 1.0
  rate = gin.get_configurable(optim.rsqrt)()
  steps = np.array([5_000, 10_000, 20_000, 40_000])
  want = 1e-3 * np.array([0.5, 1, 2**-0.5, 0.5])
  np.testing.assert_allclose(rate(steps), want, rtol=1e-6)
