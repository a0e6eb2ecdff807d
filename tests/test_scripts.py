# SPDX-License-Identifier: Apache-2.0
"""The README's commands, as a user gives them, at tiny size."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import tiny_runs
from tests.conftest import GOLDEN
from upcycle import checkpoints, results, trees

ROOT = Path(__file__).parent.parent
UPCYCLE = 'configs/upcycle_t5_laptop.gin'


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  return tiny_runs.files(tmp_path_factory.mktemp('tiny'))


def command(script, *args):
  return [sys.executable, str(ROOT / 'scripts' / script), *map(str, args)]


def flags(paths, model_dir, *changes):
  text = (ROOT / UPCYCLE).read_text()
  lines = tiny_runs.bindings(text, paths, model_dir)
  return [
    f'--gin_file={UPCYCLE}',
    *(f'--gin.{line.replace(" = ", "=", 1)}' for line in (*lines, *changes)),
  ]


def run(*args):
  return subprocess.run(
    command(*args), capture_output=True, text=True, cwd=ROOT, check=False
  )


def test_a_run_killed_at_any_moment_goes_on_exactly(paths, tmp_path):
  """SIGKILL, twice, against a run that was left alone."""
  changes = [
    'train.train.num_steps = 40',
    'train.train.checkpoint_every = 4',
    'train.train.eval_every = 10',
  ]
  whole = run('train.py', *flags(paths, tmp_path / 'whole', *changes))
  assert whole.returncode == 0, whole.stderr
  killed = command('train.py', *flags(paths, tmp_path / 'killed', *changes))
  kills = 0
  for after in (8, 24):
    with subprocess.Popen(
      killed, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
      while process.poll() is None and _logged(tmp_path / 'killed') < after:
        time.sleep(0.005)
      kills += process.poll() is None
      process.send_signal(signal.SIGKILL)
  assert kills, 'the run was over before it could be killed'
  last = run('train.py', *flags(paths, tmp_path / 'killed', *changes))
  assert last.returncode == 0, last.stderr
  a, b = (checkpoints.read(tmp_path / name) for name in ('whole', 'killed'))
  assert a.step == b.step == 1040
  for mine, other in ((a.params, b.params), (a.opt_state, b.opt_state)):
    for path, leaf in trees.flatten(mine).items():
      np.testing.assert_array_equal(leaf, trees.flatten(other)[path], path)
  rows = [results.read(tmp_path / name) for name in ('whole', 'killed')]
  for first, second in zip(*rows, strict=True):
    assert first.get('loss') == second.get('loss')
  # Another setting is another run.
  other = run(
    'train.py', *flags(paths, tmp_path / 'whole', *changes, 'NUM_EXPERTS = 2')
  )
  assert other.returncode and 'Give another MODEL_DIR' in other.stderr


def _logged(folder):
  file = folder / 'metrics.jsonl'
  lines = file.read_text().splitlines()[:-1] if file.exists() else []
  return json.loads(lines[-1])['step'] - 1000 if lines else 0


@pytest.mark.parametrize(
  'change, message',
  [
    ('train.train.num_stesp = 3', 'num_stesp'),
    ('NUM_EXPERT = 8', 'Nothing in the gin files uses NUM_EXPERT'),
    ('encodr/moe.MoeConfig.capacity_factor = 1.0', 'uses encodr/moe'),
    ('NUM_EXPERTS = [8, 16]', 'num_experts'),
    ('MODEL_DIR = runs/a', 'Strings keep their quotes'),
    ('train.train.microbatches = 3', 'microbatches'),
    ("DENSE_CHECKPOINT = '/nowhere'", 'There is no checkpoint at /nowhere'),
    (
      f"DENSE_CHECKPOINT = '{GOLDEN / 'hf_t5_v1_0'}'",
      'missing source: encoder/layers_0/mlp/wi_0/kernel',
    ),
    (
      'decoder/moe.MoeConfig.router = @routing.expert_choice',
      'Expert Choice cannot route a causal stack',
    ),
    ('NUM_EXPERTS = 0', 'at least one expert'),
    ('moe.MoeConfig.capacity_factor = -1.0', 'gives no slots'),
    ("CORPUS = 'nowhere'", 'prepare_data.py'),
  ],
)
def test_bad_input_is_one_clear_error(change, message, paths, tmp_path):
  done = run('train.py', *flags(paths, tmp_path / 'run', change))
  assert done.returncode == 1
  assert message in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()


def test_surgery_alone_and_inspection(paths, tmp_path):
  done = run(
    'upcycle_checkpoint.py',
    f'--gin_file={UPCYCLE}',
    *(f for f in flags(paths, '') if 'preset' in f or 'NUM_EXPERTS' in f),
    f'--dense={paths["dense"]}',
    f'--output={tmp_path}',
    '--format=t5x',
  )
  assert done.returncode == 0, done.stderr
  sparse = tmp_path / 'checkpoint_1000'
  assert 'layers_1/mlp/expert/wi_0/kernel' in trees.flatten(
    checkpoints.read(sparse).params['encoder']
  )
  shown = run('inspect_checkpoint.py', sparse)
  assert shown.returncode == 0 and 'router_weights' in shown.stdout
  compared = run('inspect_checkpoint.py', sparse, '--compare', paths['dense'])
  assert compared.returncode == 1
  assert 'encoder/layers_1/mlp/expert/wi_0/kernel' in compared.stdout
  same = run('inspect_checkpoint.py', sparse, '--compare', sparse)
  assert same.returncode == 0


@pytest.mark.parametrize(
  'script',
  sorted(
    f.name
    for f in (ROOT / 'scripts').glob('*.py')
    if '__main__' in f.read_text()
  ),
)
def test_help_teaches(script):
  done = run(script, '--help')
  assert done.returncode == 0 and 'python scripts/' in done.stdout
  assert os.linesep * 2 in done.stdout
