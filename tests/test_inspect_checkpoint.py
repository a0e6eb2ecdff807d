# SPDX-License-Identifier: Apache-2.0
"""scripts/inspect_checkpoint.py, as a person runs it."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.conftest import GOLDEN
from upcycle import checkpoints, trees
from upcycle.checkpoints import describe, t5x

SCRIPT = pathlib.Path(__file__).parents[1] / 'scripts/inspect_checkpoint.py'
TINY = GOLDEN / 't5x_tiny_dense_checkpoint'


def run(*arguments):
  command = [sys.executable, SCRIPT, *map(str, arguments)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope='module')
def tiny():
  return checkpoints.read(TINY)


def other(tiny, folder, **leaves):
  """A copy of the tiny checkpoint with some leaves replaced, or None gone."""
  flat = {**trees.flatten(tiny.params), **leaves}
  flat = {path: leaf for path, leaf in flat.items() if leaf is not None}
  return checkpoints.read(t5x.write(folder, trees.unflatten(flat), 2))


def test_a_checkpoint_is_described():
  code, out, _ = run(TINY)
  assert code == 0
  for text in (
    'format: T5X',
    'step: 1000',
    'emb_dim=32',
    'encoder/layers_0/mlp/wi_0/kernel',
    'float32  [32, 64]',
    '107,456 parameters in 98 arrays',
    'no experts',
    'optimizer slots: 98 v',
  ):
    assert text in out, out


def test_experts_are_counted(tmp_path):
  mlp = {
    'expert': {'wi': {'kernel': np.ones((4, 2, 3), np.float32)}},
    'router': {'router_weights': {'w': {'kernel': np.ones((2, 4))}}},
  }
  tree = {'encoder': {f'layers_{i}': {'mlp': mlp} for i in (1, 3)}}
  text = describe.describe(checkpoints.read(t5x.write(tmp_path, tree, 1)))
  assert '64 parameters in 4 arrays' in text
  assert '48 of them in the experts of 2 layers (4 experts a layer)' in text


def test_values_have_their_numbers(tmp_path):
  tree = {'a': np.array([1.0, 3.0])}
  folder = t5x.write(tmp_path, tree, 1)
  text = describe.describe(checkpoints.read(folder), values=True)
  assert (
    'mean +2.000e+00  std 1.000e+00  min +1.000e+00  max +3.000e+00' in text
  )


def test_equal_checkpoints_exit_with_0(tiny, tmp_path):
  t5x.write(tmp_path, tiny.params, 5, tiny.opt_state)
  code, out, _ = run(TINY, '--compare', tmp_path, '--values')
  assert (code, out.splitlines()[-1]) == (
    0,
    'equal in names, shapes, dtypes, values',
  )
  assert 'step 1000' in out
  assert 'step 5' in out


def test_different_ones_exit_with_1(tiny, tmp_path):
  other(tiny, tmp_path, **{'encoder/encoder_norm/scale': None})
  code, out, _ = run(TINY, '--compare', tmp_path)
  assert code == 1
  assert 'only here:  encoder/encoder_norm/scale float32[32]' in out
  assert out.endswith('1 differences\n')


def test_every_kind_of_difference_is_listed(tiny, tmp_path):
  table = np.asarray(tiny.params['token_embedder']['embedding'])
  norm = np.asarray(tiny.params['encoder']['encoder_norm']['scale'])
  there = other(
    tiny,
    tmp_path,
    **{
      'token_embedder/embedding': table + np.eye(128, 32) / 2,
      'encoder/encoder_norm/scale': norm[:16],
      'encoder/relpos_bias/rel_embedding': None,
      'new': norm,
    },
  )
  changed = 'token_embedder/embedding is float32[128, 32] here, float64'
  names = [
    'differs:    encoder/encoder_norm/scale is float32[32] here, float32[16]',
    'only here:  encoder/relpos_bias/rel_embedding float32[4, 32]',
    'only there: new float32[32]',
    f'differs:    {changed}',
  ]
  lines = describe.differences(tiny, there)
  assert len(lines) == len(names)
  for line, start in zip(lines, names, strict=True):
    assert line.startswith(start)
  *_, last = describe.differences(tiny, there, values=True)
  assert (
    last == 'values:     token_embedder/embedding differ by up to 5.000e-01'
  )


def test_slots_are_compared_where_both_have_some(tiny, tmp_path):
  slots = jax.tree.map(lambda x: np.asarray(x) + 1, tiny.opt_state)
  there = checkpoints.read(t5x.write(tmp_path, tiny.params, 1, slots))
  lines = describe.differences(tiny, there, values=True)
  assert len(lines) == 98
  assert lines[0].startswith('optimizer: values:     decoder/decoder_norm/')


def test_nan_differs_from_a_number_and_not_from_nan(tmp_path):
  found = [
    checkpoints.read(t5x.write(tmp_path / str(i), {'a': np.array([x, 1.0])}, 1))
    for i, x in enumerate((np.nan, np.nan, 2.0))
  ]
  assert not describe.differences(found[0], found[1], values=True)
  assert 'nan' in describe.differences(found[0], found[2], values=True)[0]


def test_errors_are_one_line_and_exit_with_2(tmp_path):
  code, out, err = run(tmp_path)
  assert (code, out) == (2, '')
  assert err.startswith('error: ')
  assert len(err.splitlines()) == 1


def test_help_teaches_and_jax_stays_out():
  code, out, _ = run('--help')
  assert code == 0
  assert '--compare checkpoint_1000000 --values' in out
  code = f'import runpy, sys; sys.argv = ["x", {str(TINY)!r}]\n' + (
    f'try: runpy.run_path({str(SCRIPT)!r}, run_name="__main__")\n'
    'finally: print("jax" in sys.modules)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.splitlines()[-1] == 'False'
