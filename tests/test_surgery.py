# SPDX-License-Identifier: Apache-2.0
"""Surgery: what is made of what, strictly, and what it leaves behind."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import GOLDEN, golden
from tests.test_t5 import SPARSE, TINY
from upcycle import checkpoints, convert, initialize, surgery, trees
from upcycle.models import t5

DENSE_CHECKPOINT = GOLDEN / 't5x_tiny_dense_checkpoint'
KEY = jax.random.key(0)


def upcycled(source=None, model=None):
  source = checkpoints.read(DENSE_CHECKPOINT) if source is None else source
  model = t5.T5(SPARSE) if model is None else model
  return initialize.upcycled(source.params, model, seed=0)


def test_equals_what_t5x_makes():
  """Leaf by leaf, but for the fresh routers."""
  arrays, _ = golden('t5x_tiny_model')
  prefix = 'moe_ec_tc/params/'
  theirs = {k.removeprefix(prefix): v for k, v in arrays.items() if prefix in k}
  ours = trees.flatten(upcycled())
  assert ours.keys() == theirs.keys()
  routers = [path for path in ours if '/router/' in path]
  assert len(routers) == 4
  for path, leaf in ours.items():
    if path in routers:
      assert np.std(leaf) == pytest.approx(0.02, rel=0.3)
    else:
      np.testing.assert_allclose(leaf, theirs[path], rtol=1e-5, atol=1e-7)


def test_a_dense_or_sparse_model_takes_its_own_kind_unchanged():
  source = checkpoints.read(DENSE_CHECKPOINT)
  dense = upcycled(model=t5.T5(TINY))
  sparse = upcycled()
  again = upcycled(
    checkpoints.Checkpoint(sparse, 7, None, {}), model=t5.T5(SPARSE)
  )
  for first, second in ((source.params, dense), (sparse, again)):
    trees.check(first, second, 'copy', dtypes=True)
    for path, leaf in trees.flatten(first).items():
      np.testing.assert_array_equal(leaf, trees.flatten(second)[path])


def test_optimizer_slots_are_copied_to_every_expert():
  target = {
    'a/mlp/expert/wo/kernel/v_row': (3, 8),
    'a/mlp/expert/wo/kernel/v_col': (3, 4),
    'a/mlp/router/router_weights/w/kernel/v': (4, 3),
    'a/norm/scale/v': (4,),
  }
  target = trees.unflatten(
    {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in target.items()}
  )
  slots = trees.unflatten(
    {
      'a/mlp/wo/kernel/v_row': np.arange(8, dtype=np.float32),
      'a/mlp/wo/kernel/v_col': np.arange(4, dtype=np.float32),
      'a/norm/scale/v': np.ones(4, np.float32),
    }
  )
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), target)
  made = surgery.upcycle(slots, target, key=KEY, fresh=zeros)
  rows = made['a']['mlp']['expert']['wo']['kernel']['v_row']
  np.testing.assert_array_equal(rows, np.tile(np.arange(8), (3, 1)))
  assert not made['a']['mlp']['router']['router_weights']['w']['kernel'][
    'v'
  ].any()


def shapes(**leaves):
  return trees.unflatten(
    {
      k.replace('__', '/'): jax.ShapeDtypeStruct(s, d)
      for k, (s, d) in leaves.items()
    }
  )


def test_errors_list_every_offender():
  f32 = np.float32
  dense = shapes(
    a__w=((2, 3), f32),
    b__w=((2, 3), np.float64),
    x__mlp__wo__kernel=((3, 2), f32),
    extra__w=((1,), f32),
  )
  sparse = shapes(
    a__w=((2, 4), f32),
    b__w=((2, 3), f32),
    x__mlp__expert__wo__kernel=((4, 3, 5), f32),
    missing__w=((7,), f32),
  )
  with pytest.raises(ValueError, match='5 parameters') as error:
    surgery.upcycle(dense, sparse, key=KEY)
  for offender in (
    'mismatch: a/w float32[2, 4] cannot be copied from a/w float32[2, 3]',
    'mismatch: b/w float32[2, 3] cannot be copied from b/w float64[2, 3]',
    'x/mlp/expert/wo/kernel float32[4, 3, 5] cannot be expert from',
    'missing source: missing/w float32[7]',
    'unused source: extra/w float32[1]',
  ):
    assert offender in str(error.value)


def test_half_precision_sources_are_widened():
  dense = {'a': jnp.ones((2,), jnp.bfloat16)}
  sparse = shapes(a=((2,), np.float32))
  made = surgery.upcycle(dense, sparse, key=KEY)
  assert made['a'].dtype == np.float32


def test_receipt_tells_where_every_parameter_came_from():
  source = checkpoints.read(DENSE_CHECKPOINT)
  sparse = initialize.param_shapes(t5.T5(SPARSE))
  receipt = surgery.receipt(source.params, sparse)
  counts = receipt['parameters']
  assert counts['source'] == 107456 and counts['target'] == 181696
  assert counts['copied'] + counts['expert'] + counts['fresh'] == 181696
  origin = receipt['origin']['encoder/layers_1/mlp/expert/wo/kernel']
  assert origin['kind'] == 'expert'
  assert origin['source'] == 'encoder/layers_1/mlp/wo/kernel'
  leaf = np.asarray(source.params['encoder']['layers_1']['mlp']['wo']['kernel'])
  assert origin['sha256'] == surgery.sha256(leaf)
  assert surgery.sha256(leaf) != surgery.sha256(leaf + 1)
  assert receipt == surgery.receipt(source.params, sparse)


@pytest.mark.parametrize('fmt', ['t5x', 'orbax'])
def test_convert_writes_what_can_be_read(fmt, tmp_path):
  model = t5.T5(SPARSE)
  convert.convert(model, str(DENSE_CHECKPOINT), tmp_path, format=fmt)
  back = checkpoints.read(tmp_path)
  assert back.step == 1000
  expected = trees.flatten(upcycled())
  trees.check(trees.unflatten(expected), back.params, fmt, dtypes=True)
  for path, leaf in trees.flatten(back.params).items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
  receipt = json.loads((tmp_path / 'receipt.json').read_text())
  assert receipt['source']['step'] == 1000


def test_importing_the_router_does_not_import_orbax():
  code = 'import sys, upcycle.routing; assert "orbax" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)
