# SPDX-License-Identifier: Apache-2.0
"""Exports: what is written is read back equal, and by others' libraries."""

import dataclasses
import functools
import json
import shutil
import types

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import tiny_runs, tiny_scripts, tiny_vit_runs
from tests.conftest import GOLDEN
from tests.test_huggingface import INDEX, MODEL, assert_same
from tests.test_t5 import SPARSE, TINY
from upcycle import (
  checkpoints,
  compatibility,
  export,
  initialize,
  routing,
  trees,
)
from upcycle.checkpoints import exported, huggingface
from upcycle.models import moe, t5, vit

UPCYCLE = 'configs/upcycle_t5_laptop.gin'
DENSE_T5 = GOLDEN / 't5x_tiny_dense_checkpoint'


@pytest.fixture(scope='module')
def sparse_t5(tmp_path_factory):
  """A T5X checkpoint of a sparse T5, of step 7."""
  source = checkpoints.read(DENSE_T5)
  params = initialize.upcycled(source.params, t5.T5(SPARSE), seed=0)
  folder = tmp_path_factory.mktemp('sparse')
  return str(checkpoints.t5x.write(folder, params, 7))


@pytest.fixture(scope='module')
def vits(tmp_path_factory):
  return tiny_vit_runs.files(tmp_path_factory.mktemp('vits'))


def tiny_vit(sparse):
  experts = moe.MoeConfig(num_experts=tiny_vit_runs.EXPERTS, group_size=None)
  return vit.ViT(
    vit.preset(
      'vit_s16',
      image_size=8,
      num_classes=tiny_vit_runs.CLASSES,
      moe=experts if sparse else None,
      **tiny_vit_runs.SIZES,
    )
  )


@pytest.mark.parametrize('version', ['hf_t5_v1_0', 'hf_t5_v1_1'])
def test_hugging_face_is_written_as_it_was_read(version, tmp_path):
  source = checkpoints.read(GOLDEN / version)
  model = t5.T5(t5.T5Config(**source.metadata['model']))
  out = tmp_path / 'out'
  export.export(model, str(GOLDEN / version), out, format='huggingface')
  assert_same(source, checkpoints.read(out))
  assert checkpoints.read(out).metadata['model'] == source.metadata['model']
  want, got = (load_file(x / MODEL) for x in (GOLDEN / version, out))
  assert want.keys() == got.keys()
  for name, x in want.items():
    np.testing.assert_array_equal(got[name], x, err_msg=name)
  theirs, ours = (
    json.loads((x / 'config.json').read_text()) for x in (GOLDEN / version, out)
  )
  # Of what it says that it does not share with save_pretrained's: the latter
  # is true of every T5 since transformers 5, see hf_t5.
  assert {k for k in ours if ours[k] != theirs.get(k)} <= {
    'tie_word_embeddings'
  }
  assert ours['tie_word_embeddings'] == (version == 'hf_t5_v1_0')
  assert (out / 'generation_config.json').exists()


@pytest.mark.parametrize('most', [0, 13_000, 60_000])
def test_shards_hold_what_fits(most, tmp_path):
  source = checkpoints.read(GOLDEN / 'hf_t5_v1_1')
  out, told = tmp_path / 'out', {}
  huggingface.write(
    out,
    source.params,
    source.metadata['model'],
    shard_bytes=most,
    progress=told.__setitem__,
  )
  index = json.loads((out / INDEX).read_text())
  files = sorted(out.glob('model-*.safetensors'))
  assert most or len(files) == len(told)
  assert files[-1].name.endswith(f'-of-{len(files):05}.safetensors')
  for file in files:
    tensors = load_file(file)
    assert {index['weight_map'][name] for name in tensors} == {file.name}
    assert len(tensors) == 1 or sum(x.nbytes for x in tensors.values()) <= most
  assert index['metadata']['total_size'] == sum(told.values())
  assert_same(source, checkpoints.read(out))


def test_one_tensor_at_a_time_and_all_or_nothing(tmp_path):
  """A tensor is read once the one before is written; a failure leaves none."""
  source = checkpoints.read(GOLDEN / 'hf_t5_v1_1')
  order = []

  def watched(path, leaf):
    def read():
      order.append('read')
      if len(order) > 20:
        raise OSError('the disk is gone')
      return leaf.read()

    return trees.LazyArray(leaf.shape, leaf.dtype, read)

  flat = trees.flatten(source.params)
  lazy = trees.unflatten({p: watched(p, x) for p, x in flat.items()})
  with pytest.raises(OSError, match='disk is gone'):
    huggingface.write(
      tmp_path / 'out',
      lazy,
      source.metadata['model'],
      progress=lambda name, size: order.append('written'),
    )
  assert order[:20] == ['read', 'written'] * 10
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('family', 'sparse'),
  [('t5', False), ('t5', True), ('vit', False), ('vit', True)],
)
def test_our_own_format_holds_any_model(
  family, sparse, sparse_t5, vits, tmp_path
):
  if family == 't5':
    model = t5.T5(SPARSE if sparse else TINY)
    path = sparse_t5 if sparse else str(DENSE_T5)
  else:
    model, path = tiny_vit(sparse), vits['sparse' if sparse else 'dense']
  out = tmp_path / 'out'
  export.export(model, path, out, format='safetensors')
  source, found = checkpoints.read(path), checkpoints.read(out)
  assert_same(source, found)
  assert found.step == source.step > 0
  for leaf in trees.flatten(found.params).values():
    assert isinstance(leaf, trees.LazyArray)
  assert load_file(out / MODEL).keys() == trees.flatten(source.params).keys()
  # What it says makes the model again, and no other format takes it for one.
  facts = found.metadata['model']
  again = type(model)(type(model.dense().config)(**facts))
  shapes = map(initialize.param_shapes, (again, model.dense()))
  assert not trees.diff(*shapes, dtypes=True)
  assert compatibility.architecture(model.config) == facts
  detecting = [f for f, _ in checkpoints.FORMATS if f(str(out))]
  assert detecting == [exported.detect]
  assert found.metadata['moe'].keys() == model.moe_layers().keys()
  assert json.loads((out / 'receipt.json').read_text())['origin']


def test_what_is_sparse_is_said():
  router = functools.partial(routing.top_k, k=2)
  config = moe.MoeConfig(num_experts=4, router=router, capacity_factor=1.5)
  model = t5.T5(t5.preset('t5_1_1_small', decoder_moe=config))
  said = export.about(model)
  assert said['model_type'] == 't5'
  layer = said['moe']['decoder/layers_7/mlp']
  assert (layer['num_experts'], layer['router']) == (4, 'top_k(k=2)')
  assert layer['capacity_factor'] == 1.5
  assert json.loads(json.dumps(said))['moe'] == said['moe']


def test_a_sparse_t5_goes_to_t5x(sparse_t5, tmp_path):
  model = t5.T5(SPARSE)
  export.export(model, sparse_t5, tmp_path / 'out', format='t5x')
  found = checkpoints.read(tmp_path / 'out' / 'checkpoint_7')
  assert_same(checkpoints.read(sparse_t5), found)


def test_refusals_come_before_anything_is_written(sparse_t5, vits, tmp_path):
  def refused(model, path, message, **kwargs):
    with pytest.raises((ValueError, OSError), match=message):
      export.export(model, path, tmp_path / 'out', **kwargs)

  sparse = t5.T5(SPARSE)
  refused(sparse, sparse_t5, 'format safetensors.*--downcycle=mean',
          format='huggingface')  # fmt: skip
  refused(sparse, str(DENSE_T5), 'is dense and the model is sparse',
          format='t5x')  # fmt: skip
  refused(tiny_vit(True), vits['sparse'], "'t5x' is written of a T5",
          format='t5x')  # fmt: skip
  refused(sparse, sparse_t5, "not 'npz'", format='npz')
  refused(sparse, sparse_t5, 'has 4 experts', format='t5x', choose=9)
  refused(sparse, sparse_t5, 'Scales are measured', format='t5x', scaled=True)
  other = t5.T5(t5.T5Config(**{**vars(TINY), 'mlp_activations': ('relu',) * 2}))
  refused(other, str(DENSE_T5), 'no T5 with the activations',
          format='huggingface')  # fmt: skip
  assert not list(tmp_path.iterdir())
  (tmp_path / 'out').write_text('')
  refused(sparse, sparse_t5, 'is there already', format='t5x')


@pytest.mark.parametrize(
  ('where', 'changes', 'message'),
  [
    ('gs://bucket/run', {}, 'gcloud storage cp'),
    ('there', {}, 'is there already'),
    ('out', {'mlp_activations': ('relu', 'relu')}, 'has no T5 with the act'),
    ('out', {}, 'make room'),
  ],
)
def test_refusals_come_before_anything_is_measured(
  where, changes, message, sparse_t5, tmp_path, monkeypatch
):
  (tmp_path / 'there').mkdir()
  (tmp_path / 'there' / 'file').write_text('')
  if message == 'make room':
    full = types.SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: full)
  model = t5.T5(dataclasses.replace(SPARSE, **changes))
  with pytest.raises((ValueError, OSError), match=message):
    export.export(
      *(model, sparse_t5, where if '://' in where else tmp_path / where),
      format='huggingface',
      choose='mean',
      scaled=True,
      eval_data=map(pytest.fail, ['measured']),
    )


def test_an_export_that_fails_leaves_nothing(sparse_t5, tmp_path):
  write = functools.partial(
    export.export, t5.T5(SPARSE), sparse_t5, tmp_path / 'out', format='t5x'
  )

  def fails(*_):
    raise OSError('the disk is gone')

  for broken in ({'progress': fails}, {'config': fails}):
    with pytest.raises(OSError, match='disk is gone'):
      write(**broken)
    assert not list(tmp_path.iterdir())
  (tmp_path / 'out').mkdir()  # empty: in nobody's way
  write()
  assert checkpoints.read(tmp_path / 'out').step == 7


def test_a_later_version_and_a_broken_config(tmp_path):
  out = tmp_path / 'out'
  params = checkpoints.read(DENSE_T5).params
  exported.write(out, params, 1, export.about(t5.T5(TINY)))
  file = out / 'config.json'
  said = json.loads(file.read_text())
  file.write_text(json.dumps(said | {'version': 2}))
  with pytest.raises(ValueError, match=r'version 2.*newer upcycle'):
    checkpoints.read(out)
  file.write_text('{"format": "upc')
  with pytest.raises(ValueError, match=r'config\.json is truncated'):
    checkpoints.read(out)


def test_the_script_makes_dense_and_measures(tmp_path, monkeypatch, capsys):
  paths = tiny_runs.files(tmp_path / 'files')
  text = (tiny_scripts.ROOT / UPCYCLE).read_text()
  lines = tiny_runs.bindings(text, paths, tmp_path)
  flags = tiny_scripts.flags([UPCYCLE], lines)
  sparse = tmp_path / 'sparse'
  args = f'--dense={paths["dense"]}', f'--output={sparse}'
  kept = [f for f in flags if 'train.train' not in f and 'MODEL_DIR' not in f]
  main = functools.partial(tiny_scripts.main, monkeypatch)
  assert main('upcycle_checkpoint.py', *kept, *args) is None
  out = tmp_path / 'out'
  args = (
    f'--checkpoint={sparse}',
    f'--output={out}',
    '--format=huggingface',
    '--downcycle=1',
    '--scale=measured',
  )
  assert main('export_checkpoint.py', *flags, *args) is None
  said = json.loads((out / 'receipt.json').read_text())
  shown = capsys.readouterr().out
  for kind in ('sparse', 'dense'):
    assert f'{kind}: loss {said[kind]["loss"]:.4f}' in shown
  assert said['scales'].keys() == {
    'encoder/layers_1/mlp',
    'decoder/layers_1/mlp',
  }
  assert said['downcycle'] == 1 and said['parameters']['merged'] > 0
  # But for the scale, it is the dense model that was upcycled.
  want = trees.flatten(checkpoints.read(paths['dense']).params)
  got = trees.flatten(checkpoints.read(out).params)
  assert {p for p in want if not np.array_equal(want[p], got[p])} == {
    f'{layer}/wo/kernel' for layer in said['scales']
  }
  for layer, scale in said['scales'].items():
    path = f'{layer}/wo/kernel'
    np.testing.assert_array_equal(
      got[path], np.asarray(want[path]) * np.float32(scale)
    )
  assert 'moe.MoeConfig' in (out / 'config.gin').read_text()
