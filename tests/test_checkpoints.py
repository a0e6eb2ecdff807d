# SPDX-License-Identifier: Apache-2.0
"""T5X checkpoints: a real one read, written again, and read once more."""

import gzip
import pathlib
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.conftest import GOLDEN, golden
from upcycle import checkpoints, trees
from upcycle.checkpoints import stores, t5x, t5x_index

FOLDER = GOLDEN / 't5x_tiny_dense_checkpoint' / 'checkpoint_1000'
TINY = {
  'vocab_size': 128,
  'emb_dim': 32,
  'num_heads': 4,
  'num_encoder_layers': 4,
  'num_decoder_layers': 4,
  'head_dim': 8,
  'mlp_dim': 64,
  'mlp_activations': ('gelu', 'linear'),
  'logits_via_embedding': False,
}


def assert_trees_equal(want, got):
  want, got = trees.flatten(want), trees.flatten(got)
  assert want.keys() == got.keys()
  for path, leaf in want.items():
    np.testing.assert_array_equal(got[path], leaf, err_msg=path, strict=True)


@pytest.fixture(scope='module')
def tiny():
  return checkpoints.read(FOLDER)


def sparse_tree(dtype=np.float32):
  """A layer of 3 experts, views of one; names and axes as T5X has them."""
  rng = np.random.default_rng(0)
  wi = rng.standard_normal((4, 6)).astype(dtype)
  layer = {
    'expert': {'wi': {'kernel': np.broadcast_to(wi, (3, 4, 6))}},
    'router': {'router_weights': {'w': {'kernel': wi[:, :3]}}},
  }
  return {'encoder': {'layers_1': {'mlp': layer}}}


def index_keys(folder):
  index = (pathlib.Path(folder) / 'checkpoint').read_bytes()
  tree = t5x_index.unpack(index, str(folder))
  return trees.flatten(t5x_index.mark_stored(tree)).keys()


def test_params_of_a_real_checkpoint_are_those_of_its_model(tiny):
  """The model's arrays come from another run: their last bit may differ."""
  want, _ = golden('t5x_tiny_dense_params')
  got = trees.flatten(tiny.params)
  assert got.keys() == want.keys()
  for path, leaf in got.items():
    np.testing.assert_allclose(
      leaf, want[path], rtol=1e-6, err_msg=f'{path}: the reader is wrong'
    )


def test_params_of_a_real_checkpoint_are_its_bytes(tiny):
  for path, leaf in trees.flatten(tiny.params).items():
    folder = FOLDER / f'target.{path.replace("/", ".")}'
    (chunk,) = folder.glob('[0-9]*')
    content = np.frombuffer(gzip.decompress(chunk.read_bytes()), np.float32)
    np.testing.assert_array_equal(np.ravel(leaf), content, err_msg=path)


def test_step_and_model_of_a_real_checkpoint(tiny):
  assert tiny.step == 1000
  assert tiny.metadata['model'] == TINY
  assert tiny.metadata['format'] == 'T5X'


def test_slots_of_a_real_checkpoint_are_those_in_use(tiny):
  params, slots = trees.flatten(tiny.params), trees.flatten(tiny.opt_state)
  assert slots.keys() == {f'{path}/v' for path in params}
  for path, leaf in slots.items():
    assert leaf.shape == params[path.removesuffix('/v')].shape
    assert np.asarray(leaf).min() >= 0
  some = 'encoder/layers_0/mlp/wi_0/kernel/v'
  direct = stores.read_array(
    str(FOLDER), f'state.param_states.{some}'.replace('/', '.')
  )
  np.testing.assert_array_equal(slots[some], direct)


def test_leaves_are_lazy_and_not_kept(tmp_path):
  folder = shutil.copytree(FOLDER, tmp_path / 'checkpoint_1000')
  params = trees.flatten(checkpoints.read(folder).params)
  leaf = params['token_embedder/embedding']
  np.testing.assert_array_equal(jnp.asarray(leaf), np.asarray(leaf))
  assert np.asarray(leaf, np.float16).dtype == np.float16
  with pytest.raises(ValueError, match='always a new array'):
    np.array(leaf, copy=False)
  shutil.rmtree(folder / 'target.token_embedder.embedding')
  with pytest.raises(ValueError, match=r'target\.token_embedder\.embedding'):
    np.asarray(leaf)


@pytest.mark.parametrize(
  'where', ['', 'checkpoint_1000', 'checkpoint_1000/checkpoint']
)
def test_index_folder_and_parent_are_the_same_checkpoint(where):
  assert (
    checkpoints.read(GOLDEN / 't5x_tiny_dense_checkpoint' / where).step == 1000
  )


def test_newest_of_a_folder_is_taken_and_named(tmp_path):
  for step in (900, 1000, 20):
    t5x.write(tmp_path, sparse_tree(), step)
  found = checkpoints.read(tmp_path)
  assert found.step == 1000
  assert found.metadata['newest_of'] == [20, 900, 1000]


def test_a_checkpoint_written_again_is_the_same(tiny, tmp_path):
  folder = t5x.write(tmp_path, tiny.params, tiny.step, tiny.opt_state)
  assert folder == tmp_path / 'checkpoint_1000'
  again = checkpoints.read(folder)
  assert again.step == 1000
  assert_trees_equal(tiny.params, again.params)
  assert_trees_equal(tiny.opt_state, again.opt_state)
  assert index_keys(folder) == index_keys(FOLDER)
  assert sorted(x.name for x in folder.iterdir()) == sorted(
    x.name for x in FOLDER.iterdir()
  )


@pytest.mark.parametrize('compression', stores.COMPRESSORS)
@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_a_sparse_tree_survives(tmp_path, compression, dtype):
  tree = sparse_tree(dtype)
  slots = jax.tree.map(
    lambda x: {
      'v_row': np.ones(x.shape[:-1]),
      'v_col': np.ones(x.shape[-1:]),
    },
    tree,
  )
  sizes = []
  folder = t5x.write(
    tmp_path, tree, 7, slots, compression=compression,
    progress=lambda _, nbytes: sizes.append(nbytes),
  )  # fmt: skip
  found = checkpoints.read(folder)
  assert_trees_equal(tree, found.params)
  assert_trees_equal(slots, found.opt_state)
  assert len(sizes) == 6
  assert sum(sizes[:2]) == (3 * 4 * 6 + 4 * 3) * np.dtype(dtype).itemsize


def test_without_slots_only_the_step_is_state(tmp_path):
  folder = t5x.write(tmp_path, sparse_tree(), 7)
  assert checkpoints.read(folder).opt_state is None
  assert [k for k in index_keys(folder) if '/state/' in k] == [
    'optimizer/state/step'
  ]


def test_jax_arrays_and_lazy_leaves_are_written(tiny, tmp_path):
  tree = {'a': jax.numpy.arange(6.0).reshape(2, 3), 'b': tiny.params['encoder']}
  assert_trees_equal(
    tree, checkpoints.read(t5x.write(tmp_path, tree, 1)).params
  )


def test_experts_that_are_views_of_one_are_never_all_in_memory(tmp_path):
  one = np.ones((256, 1024), np.float32)
  experts = np.broadcast_to(one, (32, *one.shape))
  lazy = checkpoints.LazyArray(experts.shape, one.dtype, lambda: experts)
  tracemalloc.start()
  folder = t5x.write(tmp_path, {'a': lazy}, 1)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 4 * one.nbytes
  assert_trees_equal({'a': experts}, checkpoints.read(folder).params)


def test_an_existing_checkpoint_is_kept_unless_told(tmp_path):
  t5x.write(tmp_path, sparse_tree(), 7)
  with pytest.raises(FileExistsError, match='checkpoint_7'):
    t5x.write(tmp_path, {'a': np.ones(3)}, 7)
  assert 'encoder' in checkpoints.read(tmp_path).params
  t5x.write(tmp_path / 'checkpoint_7', {'a': np.ones(3)}, 7, overwrite=True)
  assert checkpoints.read(tmp_path).params.keys() == {'a'}


def test_a_write_that_fails_leaves_nothing(tmp_path):
  def broken(index=...):
    raise ValueError('cannot be read')

  lazy = checkpoints.LazyArray((3,), np.dtype('float32'), broken)
  with pytest.raises(ValueError, match='cannot be read'):
    t5x.write(tmp_path, {'a': np.ones(3), 'b': lazy}, 7)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'compression': 'lzma'}, "Unknown compression 'lzma'"),
    ({'opt_state': {'a': {'mu': np.ones(3)}}}, r'no slot of a param.*: a/mu'),
    ({'opt_state': {'b': {'v': np.ones(3)}}}, r'has no slot: a(.|\n)*b/v'),
    ({'path': 'checkpoint_8'}, 'another step than 7'),
    ({'path': 'gs://bucket/run'}, 'gcloud storage cp'),
  ],
)
def test_what_cannot_be_written_is_refused_first(tmp_path, arguments, message):
  path = arguments.pop('path', '')
  path = path if path.startswith('gs:') else tmp_path / path
  with pytest.raises(ValueError, match=message):
    t5x.write(path, {'a': np.ones(3)}, 7, **arguments)
  assert not list(tmp_path.iterdir())


def test_a_disk_too_small_is_refused_first(tmp_path):
  huge = checkpoints.LazyArray((2**50,), np.dtype('float32'), lambda: None)
  with pytest.raises(ValueError, match='make room'):
    t5x.write(tmp_path, {'a': huge}, 7)
  assert not list(tmp_path.iterdir())


def test_inline_split_and_older_leaves_are_read(tmp_path):
  """What no file here has: split arrays, specs with the path on top, names."""
  folder = t5x.write(tmp_path, {k: np.arange(6.0) for k in 'abc'}, 7)
  index = t5x_index.unpack((folder / 'checkpoint').read_bytes(), '')
  target = index['optimizer']['target']
  pieces = {'0': np.arange(4.0), '1': np.arange(4.0, 6)}
  target['a'] = {
    '__msgpack_chunked_array__': True,
    'shape': {'0': 2, '1': 3},
    'chunks': pieces,
  }
  target['b']['path'] = f'/bucket/{target["b"]["kvstore"]["path"]}'
  target['b']['kvstore'] = {'driver': 'gcs', 'bucket': 't5x-dummy-bucket'}
  target['c'] = 'PLACEHOLDER://target.c'
  index['optimizer']['state']['step'] = np.asarray(9)
  (folder / 'checkpoint').write_bytes(t5x_index.pack(index))
  found = checkpoints.read(folder)
  assert found.step == 9
  want = {
    'a': np.arange(6.0).reshape(2, 3),
    'b': np.arange(6.0),
    'c': np.arange(6.0),
  }
  assert_trees_equal(want, found.params)


def test_bfloat16_under_its_old_name_is_read(tmp_path):
  tree = {'a': np.arange(5, dtype=ml_dtypes.bfloat16)}
  folder = t5x.write(tmp_path, tree, 1)
  file = folder / 'target.a' / '.zarray'
  file.write_text(file.read_text().replace('bfloat16', '<u2'))
  assert_trees_equal(tree, checkpoints.read(folder).params)


def test_an_index_is_what_flax_reads_and_writes(tmp_path):
  from flax import serialization

  folder = t5x.write(tmp_path, {'a': np.ones(3)}, 7, {'a': {'v': np.ones(3)}})
  content = (folder / 'checkpoint').read_bytes()
  theirs = serialization.msgpack_restore(content)
  assert theirs['version'] == 3
  step = theirs['optimizer']['state']['step']
  assert (step.shape, step.dtype, int(step)) == ((), np.int32, 7)
  unused = theirs['optimizer']['state']['param_states']['a']['m']
  np.testing.assert_array_equal(unused, np.zeros(1, np.float32), strict=True)
  again = serialization.msgpack_serialize(theirs)
  np.testing.assert_equal(t5x_index.unpack(again, ''), theirs)


def test_slots_of_another_optimizer_are_left_out(tmp_path):
  folder = t5x.write(tmp_path, {'a': np.ones(3)}, 7)
  index = t5x_index.unpack((folder / 'checkpoint').read_bytes(), '')
  adam = {'0': {'mu': {'a': np.ones(3)}, 'nu': {'a': np.ones(3)}}}
  index['optimizer']['state']['param_states'] = adam
  (folder / 'checkpoint').write_bytes(t5x_index.pack(index))
  found = checkpoints.read(folder)
  assert found.opt_state is None
  assert 'not Adafactor' in found.metadata['optimizer']


@pytest.mark.parametrize(
  ('shape', 'chunks'),
  [
    ((32, 768, 2048), [1, 768, 2048]),
    ((32, 2048, 5120), [1, 342, 5120]),
    ((32128, 768), [2678, 768]),
    ((7,), [7]),
    ((), []),
    ((3 * 2**20, 2), [1048576, 2]),
  ],
)
def test_chunks_are_runs_of_memory_below_8_mib(shape, chunks):
  assert stores.chunk_shape(shape, 4) == chunks
  assert np.prod(chunks) * 4 <= 8 * 2**20


def test_arrays_of_several_chunks_survive(tmp_path):
  tree = {'a': np.arange(3 * 2**20, dtype=np.float32).reshape(3, -1)}
  folder = t5x.write(tmp_path, tree, 1, compression='gzip')
  assert len(list((folder / 'target.a').glob('[0-9]*'))) == 2
  found = checkpoints.read(folder).params
  assert_trees_equal(tree, found)
  np.testing.assert_array_equal(found['a'].read((2, 5)), tree['a'][2, 5])
  np.testing.assert_array_equal(found['a'].T, tree['a'].T)


@pytest.mark.parametrize(
  ('root', 'name', 'spec'),
  [
    (
      'gs://b/run/c_1',
      'x.y',
      {'driver': 'gcs', 'bucket': 'b', 'path': 'run/c_1/x.y/'},
    ),
    ('gs://b/run/', '', {'driver': 'gcs', 'bucket': 'b', 'path': 'run/'}),
    ('gs://b', '', {'driver': 'gcs', 'bucket': 'b', 'path': ''}),
    ('/run', 'x', {'driver': 'file', 'path': '/run/x/'}),
  ],
)
def test_kvstore_of_local_and_remote_folders(root, name, spec):
  assert stores.kvstore(root, name) == spec
