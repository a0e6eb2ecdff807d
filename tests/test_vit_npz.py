# SPDX-License-Identifier: Apache-2.0
"""ViTs in .npz files: names of three code bases, what is written, damage."""

import json
import re
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.conftest import GOLDEN
from upcycle import checkpoints, initialize, trees
from upcycle.checkpoints import hf_vit, vit_npz
from upcycle.models import vit

TINY = GOLDEN / 'vit_jax_tiny.npz'
KEYS = json.loads((GOLDEN / 'vit_b16_keys.json').read_text())
B16 = [(family, case) for family in KEYS for case in KEYS[family]]
ATTENTION = 'MultiHeadDotProductAttention'


def lazy(shape):
  read = lambda *_: np.zeros(shape, np.float32)  # noqa: E731
  return checkpoints.LazyArray(tuple(shape), np.dtype(np.float32), read)


def b16(family, case):
  """All arrays of a ViT-B/16: the file lists those of blocks 0 and 11."""
  entry = KEYS[family][case]
  arrays = {}
  for name, shape in entry['keys (blocks 0 and 11 only)'].items():
    for i in range(12):
      arrays[
        re.sub(r'((?:block_|layer\.|layers\.))0(?=\D)', rf'\g<1>{i}', name)
      ] = lazy(shape)
  if family.startswith('hf'):
    arrays |= {'vit.pooler.dense.bias': lazy([768])}
  return arrays, entry['total_keys']


def convert(family, arrays):
  if family.startswith('hf'):
    return hf_vit.convert({}, arrays, 'somewhere')
  return vit_npz.convert(arrays, 'somewhere')[:2]


@pytest.mark.parametrize(
  ('family', 'case'), [(f, c) for f, c in B16 if c != 'ViTModel_extra']
)
def test_every_array_of_b16_has_its_place(family, case):
  arrays, total = b16(family, case)
  assert len(arrays) == total + family.startswith('hf')
  params, facts = convert(family, arrays)
  model = vit.ViT(vit.ViTConfig(**facts))
  assert not trees.diff(
    initialize.param_shapes(model), trees.unflatten(params), dtypes=True
  )
  assert len(params) == total or 'scan1' in case
  size = 384 if '384' in case else 224
  assert facts['image_size'] == size
  assert (facts['depth'], facts['width'], facts['num_heads']) == (12, 768, 12)


@pytest.fixture(scope='module')
def tiny():
  return checkpoints.read(TINY)


@pytest.fixture
def arrays():
  with np.load(TINY) as data:
    return dict(data)


def save(folder, arrays):
  np.savez(folder / 'vit.npz', **arrays)
  return folder / 'vit.npz'


def error(path):
  with pytest.raises((ValueError, OSError)) as info:
    checkpoints.read(path)
  return str(info.value)


def assert_same(a, b):
  a, b = trees.flatten(a), trees.flatten(b)
  assert a.keys() == b.keys()
  for path, leaf in a.items():
    assert b[path].dtype == leaf.dtype
    np.testing.assert_array_equal(b[path], leaf, err_msg=path)


def published(name):
  """The name before Linen, which the published files have."""
  for new, old in (
    (f'{ATTENTION}_0', f'{ATTENTION}_1'),
    ('LayerNorm_1', 'LayerNorm_2'),
    ('MlpBlock_0', 'MlpBlock_3'),
  ):
    name = name.replace(new, old)
  return name


def vmoe(name):
  for ours, theirs in (
    ('Transformer', 'Encoder'),
    (f'MAPHead_0/{ATTENTION}_0', f'MapHead/{ATTENTION}'),
    ('MAPHead_0/MlpBlock_0', 'MapHead/Mlp'),
    ('MAPHead_0/LayerNorm_0', 'MapHead/LayerNorm'),
    ('MAPHead_0', 'MapHead'),
    (f'{ATTENTION}_0', 'SelfAttention'),
    ('MlpBlock_0', 'Mlp'),
  ):
    name = name.replace(ours, theirs)
  return name


@pytest.mark.parametrize('spell', [published, vmoe])
def test_other_names_of_the_same_model(spell, tiny, arrays, tmp_path):
  named = {spell(name): x for name, x in arrays.items()}
  assert named.keys() != arrays.keys()
  got = checkpoints.read(save(tmp_path, named))
  assert_same(tiny.params, got.params)
  assert got.metadata['model'] == tiny.metadata['model']
  assert got.metadata['names'] == (
    'vmoe' if spell is vmoe else 'vit_jax or big_vision'
  )


def some_vit(**changes):
  facts = {
    'image_size': 8,
    'patch_size': 4,
    'width': 8,
    'depth': 2,
    'mlp_dim': 12,
    'num_heads': 2,
    'num_classes': 3,
    'activation': 'gelu',
    'norm_epsilon': 1e-6,
  } | changes
  model = vit.ViT(vit.ViTConfig(**facts))
  shapes = trees.flatten(initialize.param_shapes(model))
  rng = np.random.default_rng(0)
  return facts, {
    path: rng.standard_normal(x.shape, np.float32) for path, x in shapes.items()
  }


@pytest.mark.parametrize(
  'changes',
  [
    {'pool_type': 'gap', 'num_classes': None},
    {'pool_type': 'tok', 'representation_size': 6, 'channels': 1},
    {'pool_type': 'map', 'representation_size': 6, 'num_classes': None},
    {'pool_type': 'map', 'positions': 'sincos2d'},
    {'pool_type': 'tok', 'positions': 'sincos2d'},
    {'pool_type': 'gap', 'moe': True},
    {'pool_type': 'map', 'qk_norm': True},
  ],
)
@pytest.mark.parametrize('spell', [str, vmoe])
def test_every_kind_of_vit_is_read(changes, spell, tmp_path):
  sparse = changes.get('moe')
  facts, params = some_vit(**{k: v for k, v in changes.items() if k != 'moe'})
  if sparse:
    params = with_experts(params)
  got = checkpoints.read(
    save(tmp_path, {spell(path): x for path, x in params.items()})
  )
  assert_same(trees.unflatten(params), got.params)
  model = got.metadata['model']
  if facts.get('positions') == 'sincos2d':
    facts.pop('image_size')
  assert {k: model.get(k) for k in facts} == facts
  assert ('image_size' in model) == ('image_size' in facts)


def with_experts(params, block=1):
  """Three experts and a router in place of a block's MLP."""
  name = f'Transformer/encoderblock_{block}'
  dense = {p: x for p, x in params.items() if f'{name}/MlpBlock_0' in p}
  experts = {
    p.replace('MlpBlock_0', 'Moe/Mlp'): np.stack([x, x + 1, x + 2])
    for p, x in dense.items()
  }
  router = {f'{name}/Moe/Router/dense/kernel': np.ones((8, 3), np.float32)}
  rest = {p: x for p, x in params.items() if p not in dense}
  return {**rest, **experts, **router}


def test_a_training_state_with_its_step(tiny, arrays, tmp_path):
  for prefix, step_of in (
    ('params/', 'opt/0/1/count'),
    ('opt/target/', 'opt/state/step'),
  ):
    state = {f'{prefix}{name}': x for name, x in arrays.items()}
    state |= {step_of: np.int32(90), 'opt/state/mu/cls': np.ones(3)}
    state |= {'chrono/accum_train_time': np.float64(7)}
    got = checkpoints.read(save(tmp_path, state))
    assert_same(tiny.params, got.params)
    assert got.step == 90
    assert got.metadata['left_out'] == '3 arrays beside params'
  assert tiny.step == 0
  assert 'left_out' not in tiny.metadata


def test_positions_before_the_class_token(tiny, arrays, tmp_path):
  """A zero for the token's, by all names that positions have had."""
  own = 'Transformer/posembed_input/pos_embedding'
  positions = arrays.pop(own)
  for name in ('pos_embedding', 'Transformer/pos_embedding', own):
    path = save(tmp_path, {**arrays, name: positions[:, 1:]})
    got = trees.flatten(checkpoints.read(path).params)[own]
    assert got.shape == positions.shape
    np.testing.assert_array_equal(got, positions * (np.arange(17) > 0)[:, None])
    got = checkpoints.read(save(tmp_path, {**arrays, name: positions}))
    assert_same(tiny.params, got.params)


def test_blocks_of_a_scan_are_read_alone(tiny, arrays, tmp_path, monkeypatch):
  stacked = {k: x for k, x in arrays.items() if 'encoderblock' not in k}
  for name in arrays:
    if 'encoderblock_0' in name:
      blocks = [arrays[name.replace('_0', f'_{i}', 1)] for i in range(4)]
      stacked[name.replace('_0', '', 1)] = np.stack(blocks)
  got = checkpoints.read(save(tmp_path, stacked))
  assert got.metadata['scanned']
  assert not tiny.metadata['scanned']
  assert_same(tiny.params, got.params)
  # It is what reads a whole array.
  monkeypatch.setattr(np.lib.format, 'read_array', None)
  np.asarray(got.params['Transformer']['encoderblock_3']['LayerNorm_0']['bias'])


def test_bfloat16_arrives_as_two_bytes_of_nothing(tiny, arrays, tmp_path):
  low = {k: x.astype(ml_dtypes.bfloat16) for k, x in arrays.items()}
  path = save(tmp_path, low)
  with np.load(path) as data:
    assert data['cls'].dtype == 'V2'
  got = checkpoints.read(path)
  assert_same(trees.unflatten(low), got.params)
  again = vit_npz.write(tmp_path / 'again.npz', got.params)
  as_float = {k: x.astype(np.float32) for k, x in low.items()}
  assert_same(trees.unflatten(as_float), checkpoints.read(again).params)


def test_what_is_written_is_what_vit_jax_names(tiny, arrays, tmp_path):
  path = vit_npz.write(tmp_path / 'new' / 'vit.npz', tiny.params)
  with np.load(path, allow_pickle=False) as data:
    assert set(data.files) == arrays.keys()
    for name in data.files:
      np.testing.assert_array_equal(data[name], arrays[name])
  assert_same(tiny.params, checkpoints.read(path).params)
  on_device = jax.tree.map(jnp.asarray, tiny.params)
  vit_npz.write(tmp_path / 'jax.npz', on_device)
  assert_same(tiny.params, checkpoints.read(tmp_path / 'jax.npz').params)


def test_nothing_is_half_written(tiny, arrays, tmp_path):
  def fail():
    raise OSError('gone')

  broken = trees.flatten(tiny.params)
  broken['head/bias'] = checkpoints.LazyArray((10,), np.dtype('f4'), fail)
  with pytest.raises(OSError, match='gone'):
    vit_npz.write(tmp_path / 'vit.npz', trees.unflatten(broken))
  arrays['head/bias'] = arrays['head/bias'][:9]
  arrays['nose/bias'] = arrays['cls']
  with pytest.raises(ValueError, match=r'mismatch: head/bias(.|\n)*nose/bias'):
    vit_npz.write(tmp_path / 'vit.npz', trees.unflatten(arrays))
  with pytest.raises(ValueError, match=r'ends in \.npz'):
    vit_npz.write(tmp_path / 'vit', tiny.params)
  assert not list(tmp_path.iterdir())
  (tmp_path / 'vit.npz').touch()
  with pytest.raises(FileExistsError, match='already'):
    vit_npz.write(tmp_path / 'vit.npz', tiny.params)


def test_all_that_does_not_fit_is_listed(arrays, tmp_path):
  block = 'Transformer/encoderblock_2'
  kernel = f'{block}/{ATTENTION}_0/out/kernel'
  arrays['Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias'] = np.ones(64)
  arrays['resnet/root'] = np.ones(3)
  arrays[kernel] = arrays[kernel].swapaxes(0, 1)
  arrays = {k: x for k, x in arrays.items() if 'encoderblock_1/' not in k}
  arrays['Transformer/encoderblock_3/Moe/Mlp/Dense_0/bias'] = np.ones((2, 64))
  text = error(save(tmp_path, arrays))
  for line in (
    'unknown: resnet/root',
    'twice: Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias and ',
    f'mismatch: {kernel} is float32[8, 4, 32], expected float32[4, 8, 32]',
    'missing: Transformer/encoderblock_1/LayerNorm_0/scale float32[32]',
    'unexpected: Transformer/encoderblock_3/Moe/Mlp/Dense_0/bias',
  ):
    assert line in text, text
  assert text.count('missing: ') == 16


def test_files_that_are_no_vit(arrays, tmp_path):
  text = error(save(tmp_path, {'wte': np.ones((4, 2)), 'head/x': np.ones(2)}))
  assert 'unknown: wte' in text
  assert 'missing: embedding/kernel [P,P,C,M]' in text
  arrays['Transformer/posembed_input/pos_embedding'] = np.ones((1, 20, 32))
  text = error(save(tmp_path, arrays))
  assert 'no square of patches: ' in text
  assert 'pos_embedding [1, 20, 32]' in text


@pytest.mark.parametrize('keep', [-1, 20_000, 4, 0])
def test_a_truncated_file(keep, tmp_path):
  path = tmp_path / 'vit.npz'
  path.write_bytes(TINY.read_bytes()[:keep])
  assert f'{path} is damaged or no .npz of arrays; copy it again' in error(path)


def test_pickles_and_truncated_arrays_are_listed(arrays, tmp_path):
  path = save(tmp_path, arrays)
  with zipfile.ZipFile(path, 'a') as archive:
    with archive.open('objects.npy', 'w') as f:
      header = {'descr': '|O', 'fortran_order': False, 'shape': (1,)}
      np.lib.format.write_array_header_1_0(f, header)
      f.write(b'\x80\x04\x95')
    archive.writestr('notes.txt', 'hello')
    archive.writestr('short.npy', archive.read('cls.npy')[:-4])
    archive.writestr(
      'text.npy', archive.read('cls.npy').replace(b'<f4', b'<U1')
    )
  text = error(path)
  assert 'objects: is a pickle, and no pickle is opened here' in text
  assert 'notes.txt: ' in text
  assert 'short: holds 252 of 256 bytes' in text
  assert 'text: is <U1, no numbers' in text
  assert 'head' not in text


def test_damage_inside_an_array_is_found_when_it_is_read(arrays, tmp_path):
  path, name = save(tmp_path, arrays), 'MlpBlock_0/Dense_0/kernel'
  content = path.read_bytes()
  kernel = arrays[f'Transformer/encoderblock_2/{name}'].tobytes()
  end = content.index(kernel) + len(kernel)
  path.write_bytes(content[: end - 1] + b'\xff' + content[end:])
  got = trees.flatten(checkpoints.read(path).params)
  np.asarray(got[f'Transformer/encoderblock_1/{name}'])
  with pytest.raises(ValueError, match=rf'is damaged(.|\n)*block_2/{name}'):
    np.asarray(got[f'Transformer/encoderblock_2/{name}'])


def test_a_remote_file_is_to_be_copied():
  with pytest.raises(ValueError, match='gcloud storage cp'):
    checkpoints.read('gs://vit_models/augreg/B_16.npz')
