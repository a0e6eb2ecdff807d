# SPDX-License-Identifier: Apache-2.0
"""Stacks of layers, as T5X's scan leaves them, come out layer by layer."""

import numpy as np
import pytest

from tests.conftest import GOLDEN
from upcycle import checkpoints, trees
from upcycle.checkpoints import scanned, t5x

LAYERS = 4
DEPTH, M = 3, 8


def lazy(array):
  read = lambda index=...: array[index]  # noqa: E731
  return checkpoints.LazyArray(array.shape, array.dtype, read)


def unstack(params, slots=None):
  slots = {k: lazy(x) for k, x in (slots or {}).items()}
  return scanned.unstack({k: lazy(x) for k, x in params.items()}, slots)


def normal(*shape):
  return np.random.default_rng(len(shape)).standard_normal(shape)


def stack(tree):
  """Puts layers_i of a tree together as T5X scans them, biases repeated."""
  flat, out = trees.flatten(tree), {}
  for path, leaf in flat.items():
    side, name = path.split('/', 1)
    if '/layers_0/' in path:
      same = [path.replace('layers_0', f'layers_{i}') for i in range(LAYERS)]
      layers = [np.asarray(flat[p]) for p in same]
      out[path.replace('layers_0', side)] = np.stack(layers, 1)
    elif name.startswith('relpos_bias/'):
      out[f'{side}/{path}'] = np.stack([np.asarray(leaf)] * LAYERS, 1)
    elif '/layers_' not in path:
      out[path] = np.asarray(leaf)
  return trees.unflatten(out)


def test_a_scanned_checkpoint_reads_as_the_one_it_was(tmp_path):
  want = checkpoints.read(GOLDEN / 't5x_tiny_dense_checkpoint')
  folder = t5x.write(
    tmp_path, stack(want.params), want.step, stack(want.opt_state)
  )
  got = checkpoints.read(folder)
  assert got.metadata['scanned']
  assert not want.metadata['scanned']
  assert got.metadata['model'] == want.metadata['model']
  for a, b in ((want.params, got.params), (want.opt_state, got.opt_state)):
    a, b = trees.flatten(a), trees.flatten(b)
    assert a.keys() == b.keys()
    for path, leaf in a.items():
      assert b[path].shape == leaf.shape
      np.testing.assert_array_equal(b[path], leaf, err_msg=path)


def test_experts_have_the_layer_axis_behind_theirs():
  path = 'decoder/decoder/mlp/expert/wi_0/kernel'
  param = normal(2, DEPTH, M, 5)
  slots = {f'{path}/v_row': param.mean(3), f'{path}/v_col': param.mean(2)}
  params, slots = unstack({path: param}, slots)
  for i in range(DEPTH):
    layer = path.replace('decoder/decoder', f'decoder/layers_{i}')
    np.testing.assert_array_equal(params[layer], param[:, i])
    row, col = slots[f'{layer}/v_row'], slots[f'{layer}/v_col']
    np.testing.assert_allclose(row, param[:, i].mean(2))
    np.testing.assert_allclose(col, param[:, i].mean(1))


@pytest.mark.parametrize(
  ('shape', 'embed'),
  [((M, 5), 0), ((M, 12), 0), ((M, M), 0), ((M, M), 1), ((12, M), 1)],
)
def test_slots_of_matrices_get_the_names_of_unscanned_ones(shape, embed):
  """Scanned: v_row keeps the embedding axis. Else: it lacks the longer one."""
  path = 'encoder/encoder/attention/out/kernel'
  param = normal(shape[0], DEPTH, shape[1])
  lost = {'v_row': 0 if embed else 2, 'v_col': 2 if embed else 0}
  slots = {f'{path}/{name}': param.mean(axis) for name, axis in lost.items()}
  _, slots = unstack({path: param}, slots)
  shorter, longer = np.argsort(shape, stable=True)
  for i in range(DEPTH):
    layer = f'encoder/layers_{i}/attention/out/kernel'
    want = {
      'v_row': param[:, i].mean(longer),
      'v_col': param[:, i].mean(shorter),
    }
    for name, mean in want.items():
      np.testing.assert_allclose(slots[f'{layer}/{name}'], mean)


def test_blocks_of_several_layers_interleave():
  blocks = {
    f'encoder/encoder/subblock_{j}/x': normal(M, DEPTH) + j for j in (0, 1)
  }
  params, _ = unstack({**blocks, 'decoder/layers_0/x': normal(M)})
  assert params.keys() == {
    *(f'encoder/layers_{i}/x' for i in range(2 * DEPTH)), 'decoder/layers_0/x',
  }  # fmt: skip
  want = blocks['encoder/encoder/subblock_1/x'][:, 2]
  np.testing.assert_array_equal(params['encoder/layers_5/x'], want)


def test_position_biases_of_their_own_stay_with_their_layers():
  bias = 'encoder/encoder/relpos_bias/rel_embedding'
  params, _ = unstack({bias: normal(2, DEPTH, M)})
  assert params.keys() == {
    f'encoder/layers_{i}/relpos_bias/rel_embedding' for i in range(DEPTH)
  }


def test_a_slot_whose_layer_axis_is_unclear_is_refused():
  paths = [f'encoder/encoder/{x}/kernel' for x in ('a', 'b')]
  params = {path: normal(3, 3, 3) for path in paths}
  slots = {f'{path}/v_row': normal(3, 3) for path in paths}
  with pytest.raises(ValueError, match=r'a/kernel/v_row(.|\n)*b/kernel/v_row'):
    unstack(params, slots)
