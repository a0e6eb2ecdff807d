# SPDX-License-Identifier: Apache-2.0
"""Sweeps: commands, what is missing, results, and what is chosen of them."""

import fcntl
import json
import runpy
import shlex
import shutil
import subprocess
from typing import NamedTuple

import numpy as np
import pytest

from tests import tiny_scripts
from upcycle import results
from upcycle.results import sweep

EXPERIMENT = """
from upcycle.results import sweep

START = {'name': 'start', 'config': 'configs/start.gin', 'bindings': {}}
SCALES = {'tiny': [
  {'name': f'{arm}_{peak}', 'config': 'configs/a.gin', 'arm': arm,
   'bindings': {'PEAK': peak, 'CHECKPOINT': START}}
  for arm in ('dense', 'sparse') for peak in (0.1, 0.3)
]}
for run in SCALES['tiny'][2:]:
  run['bindings']['SPARSE'] = True


def summary(rows):
  return '; '.join(
    f"{arm} {sweep.best(runs, 'eval/accuracy', 'name')[0][0]}"
    for (arm,), runs in sweep.groups(rows, 'arm').items()
  )
"""


class Trainer:
  """Stands in for processes: writes metrics, or fails as it is told."""

  def __init__(self, root, errors=()):
    self.root, self.errors, self.names = root, dict(errors), []

  def __call__(self, command, *, stdout, **options):
    flags = dict(x[6:].split('=', 1) for x in command if x.startswith('--gin.'))
    folder = self.root / json.loads(flags['MODEL_DIR'])
    peak = float(flags.get('PEAK', 0))
    arm = 'sparse' if 'SPARSE' in flags else 'dense'
    self.names.append(f'{arm}_{peak}' if peak else 'start')
    error = self.errors.get(self.names[-1], '')
    stdout.write(error)
    for step in (0, 2):
      for split in ('train', 'eval'):
        values = {'loss': peak, 'accuracy': step * (1 - peak), 'load': [1, 2]}
        row = {'step': step, 'split': split, 'seconds': 3.0 + step, 'a/b': 1}
        results.append(folder / 'metrics.jsonl', row | values)
    cost = {'step': 2, 'split': 'cost', 'step_flops': 10, 'seconds': 5.0}
    cost |= {} if error else {'peak_memory': 7}
    if error.startswith('FloatingPointError: '):
      cost['error'] = error.split(': ', 1)[1]
    results.append(folder / 'metrics.jsonl', cost)
    return Ended(bool(error))


class Ended(NamedTuple):
  """A process that has ended."""

  returncode: int

  def poll(self):
    return self.returncode

  def wait(self):
    return self.returncode


@pytest.fixture
def experiment(tmp_path, monkeypatch):
  """An experiment of four runs in a repository of its own."""
  folder = tmp_path / 'experiments/07_tiny'
  folder.mkdir(parents=True)
  (folder / 'sweep.py').write_text(EXPERIMENT)
  for name in ('scripts', 'configs'):
    (tmp_path / name).mkdir()
  for name in ('start', 'a'):
    (tmp_path / f'configs/{name}.gin').write_text("include 'configs/base.gin'")
  (tmp_path / 'configs/base.gin').write_text('# A comment.\nx.y = 1\n')
  source = (tiny_scripts.ROOT / 'scripts/sweep.py').read_text()
  (tmp_path / 'scripts/sweep.py').write_text(source)
  monkeypatch.setattr(tiny_scripts, 'ROOT', tmp_path)
  return folder


def call(experiment, monkeypatch, *flags, errors=()):
  """What the script exits with, and the runs it trained."""
  trainer = Trainer(experiment.parent.parent, errors)
  monkeypatch.setattr(subprocess, 'Popen', trainer)
  args = experiment, *flags, '--scale=tiny'
  return tiny_scripts.main(monkeypatch, 'sweep.py', *args), trainer.names


CONFIG = 'configs/dense_t5_base.gin'
NAMES = ['dense_0.1', 'dense_0.3', 'sparse_0.1', 'sparse_0.3']


def test_every_run_once_and_what_they_start_from_before(
  experiment, monkeypatch, capsys
):
  assert call(experiment, monkeypatch) == (None, ['start', *NAMES])
  printed = capsys.readouterr().out
  assert '[1/5] start' in printed and '[5/5, ETA 0:00:00] sparse' in printed
  assert printed.endswith('\n07_tiny\ndense dense_0.1; sparse sparse_0.1\n')
  rows = results.read(experiment / 'results.jsonl')
  assert [row['name'] for row in rows] == NAMES
  folders = [rows[1]['bindings'].pop('CHECKPOINT'), rows[1].pop('model_dir')]
  assert folders[0].startswith('runs/sweeps/start_')
  assert folders[1].startswith('runs/sweeps/a_')
  assert rows[1] == {
    'scale': 'tiny',
    'name': 'dense_0.3',
    'config': 'configs/a.gin',
    'arm': 'dense',
    'bindings': {'PEAK': 0.3},
    'step': 2,
    'seconds': 5.0,
    'train/loss': 0.3,
    'train/accuracy': 1.4,
    'eval/loss': 0.3,
    'eval/accuracy': 1.4,
    'curves': {
      'eval/loss': [[0, 0, 0, 0.3], [2, 20, 2, 0.3]],
      'eval/accuracy': [[0, 0, 0, 0], [2, 20, 2, 1.4]],
    },
    'cost/step_flops': 10,
    'cost/peak_memory': 7,
    'FLOPs': 20,
    'before/FLOPs': 20,
  }
  assert call(experiment, monkeypatch) == (None, [])


def test_equal_runs_of_experiments_are_one(experiment, monkeypatch):
  other = experiment.with_name('08_tiny')
  shutil.copytree(experiment, other)
  assert call(experiment, monkeypatch, other)[1] == ['start', *NAMES]
  rows = [results.read(f / 'results.jsonl') for f in (experiment, other)]
  assert rows[0] == rows[1]


def test_a_first_seed_comes_before_a_second(experiment, monkeypatch):
  seeds = (
    EXPERIMENT
    + """
for i, run in enumerate(SCALES['tiny']):
  run['seed'] = i % 2
"""
  )
  (experiment / 'sweep.py').write_text(seeds)
  trained = call(experiment, monkeypatch, '--jobs=2')[1]
  assert trained == ['start', *NAMES[::2], *NAMES[1::2]]


def test_settings_decide_the_folder(experiment):
  root = experiment.parent.parent
  run = {'name': 'a', 'config': 'configs/a.gin', 'bindings': {'x': 1}}
  folder = sweep.model_dir(run, root)
  base = root / 'configs/base.gin'
  base.write_text('# Another comment.\nx.y = 1\n\n')
  assert sweep.model_dir(run | {'name': 'b'}, root) == folder
  base.write_text('x.y = 2\n')
  others = [
    sweep.model_dir(run | {'bindings': bindings}, root)
    for bindings in (
      {'x': 1},
      {'x': 2},
      {'x': run},
      {'x': dict(run, bindings={})},
    )
  ]
  assert len({folder, *others}) == 5


def test_a_result_has_the_numbers_of_the_cost(tmp_path):
  rows = [
    {'split': 'cost', 'step_flops': 7, 'cpu': 'a name'},
    {'split': 'train', 'loss': 0.5, 'seconds': 2.0},
    {'split': 'eval', 'loss': 0.5, 'seconds': 2.0},
    {'split': 'cost', 'step_flops': 7, 'cpu': 'a name', 'tokens': 5}
    | {'peak_memory': 9},
    {'split': 'train', 'step': 4, 'loss': 0.5, 'seconds': 3.0},
    {'split': 'eval', 'step': 4, 'loss': 0.25, 'seconds': 4.0},
  ]
  for row in rows:
    results.append(tmp_path / 'metrics.jsonl', {'step': 1, **row})
  assert sweep.result(tmp_path) == {
    'step': 4,
    'seconds': 3.0,
    'train/loss': 0.5,
    'eval/loss': 0.25,
    'cost/step_flops': 7,
    'cost/cpu': 'a name',
    'cost/tokens': 5,
    'cost/peak_memory': 9,
    'FLOPs': 21,
    'tokens': 15,
    'curves': {'eval/loss': [[0, 0, 0, 0.5], [3, 21, 2, 0.25]]},
  }


def test_what_failed_is_said_and_the_rest_goes_on(
  experiment, monkeypatch, capsys
):
  errors = {'dense_0.3': 'warning\nValueError: no room'}
  error, trained = call(experiment, monkeypatch, errors=errors)
  assert trained == ['start', *NAMES]
  assert 'dense_0.3 failed' in error and 'ValueError: no room' in error
  assert 'scripts/train.py' in error
  assert len(results.read(experiment / 'results.jsonl')) == 3
  capsys.readouterr()
  assert call(experiment, monkeypatch, '--list') == (None, [])
  (line,) = capsys.readouterr().out.splitlines()
  *command, checkpoint, model_dir = shlex.split(line)
  assert command == [
    'python',
    'scripts/train.py',
    '--gin_file=configs/a.gin',
    '--gin.PEAK=0.3',
  ]
  assert checkpoint.startswith('--gin.CHECKPOINT="runs/sweeps/start_')
  assert model_dir.startswith('--gin.MODEL_DIR="runs/sweeps/a_')
  assert call(experiment, monkeypatch) == (None, NAMES[1:2])


@pytest.mark.parametrize('why', ['ValueError: x', 'FloatingPointError: x'])
def test_what_starts_from_a_run_without_a_model_is_not_run(
  why, experiment, monkeypatch, capsys
):
  error, trained = call(experiment, monkeypatch, errors={'start': why})
  assert trained == ['start']
  assert error.count('starts from one that has no model') == 4
  capsys.readouterr()
  assert call(experiment, monkeypatch, '--list') == (None, [])
  printed = capsys.readouterr().out
  diverged = why.startswith('Floating')
  assert printed.count('scripts/train.py') == (0 if diverged else 5)
  assert printed.count('starts from one that has no model') == 4 * diverged


def test_commands_are_listed_in_stages(experiment, monkeypatch, capsys):
  assert call(experiment, monkeypatch, '--list') == (None, [])
  lines = capsys.readouterr().out.splitlines()
  assert (lines[0], lines[2]) == ('# Stage 1', '# Stage 2')
  assert 'start.gin' in lines[1] and len(lines) == 3 + 4
  # A scheduler runs all of them; one diverges and one is killed.
  errors = {'dense_0.1': 'FloatingPointError: x', 'sparse_0.3': 'killed'}
  trainer = Trainer(experiment.parent.parent, errors)
  for line in (lines[1], *lines[3:]):
    with (experiment / 'log').open('w') as log:
      trainer(shlex.split(line), stdout=log)
  assert call(experiment, monkeypatch, '--list') == (None, [])
  (left,) = capsys.readouterr().out.splitlines()
  assert left == lines[-1]
  rows = results.read(experiment / 'results.jsonl')
  assert [row['name'] for row in rows] == NAMES[:-1]
  assert [row.get('error') for row in rows] == ['x', None, None]


def test_one_sweep_at_a_time(experiment, monkeypatch, capsys):
  file = experiment.parent.parent / 'runs/sweeps/.lock'
  file.parent.mkdir(parents=True)
  with file.open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    error, trained = call(experiment, monkeypatch)
    assert call(experiment, monkeypatch, '--list') == (None, [])
  assert 'Another sweep runs here' in error and not trained
  assert capsys.readouterr().out.startswith('# A sweep runs here')


def test_a_run_that_diverges_is_a_result(experiment, monkeypatch, capsys):
  errors = {'dense_0.1': 'FloatingPointError: step 3 is not finite'}
  assert call(experiment, monkeypatch, errors=errors)[0] is None
  assert 'dense dense_0.3; sparse sparse_0.1' in capsys.readouterr().out
  row = results.read(experiment / 'results.jsonl')[0]
  assert row['error'] == 'step 3 is not finite'
  assert 'eval/loss' not in row and row['curves']['eval/loss']
  assert (row['FLOPs'], row['seconds'], row['cost/step_flops']) == (20, 5, 10)


def test_other_bindings_are_another_run(experiment, monkeypatch):
  call(experiment, monkeypatch)
  changed = EXPERIMENT.replace('(0.1, 0.3)', '(0.1, 0.5)')
  (experiment / 'sweep.py').write_text(changed)
  assert call(experiment, monkeypatch)[1] == ['dense_0.5', 'sparse_0.5']


def test_an_unknown_scale(experiment, monkeypatch):
  args = experiment, '--scale=huge'
  error = tiny_scripts.main(monkeypatch, 'sweep.py', *args)
  assert error.startswith('error: Nothing is to be run: --scale=huge')


def test_runs_that_are_none():
  good = {'name': 'a', 'config': 'c', 'bindings': {}}
  sweep.check([good])
  with pytest.raises(ValueError, match=r"'a' is there twice; .*'b'.*no config"):
    sweep.check([good, good, {'name': 'b', 'bindings': {}}])
  sweep.check([good | {'bindings': {'vit.preset.moe': None}}])
  with pytest.raises(ValueError, match="arm of 'a' is None"):
    sweep.check([good | {'arm': None}])


def test_values_of_bindings_are_gins():
  bindings = {'a.b': None, 'C': "it's", 'd': ('x', 1.0), 'e': '@f.g', 'H': '%I'}
  run = {'name': 'a', 'config': CONFIG, 'bindings': bindings}
  assert sweep.command(run)[2:-1] == [
    '--gin.a.b=None',
    '--gin.C="it\'s"',
    "--gin.d=('x', 1.0)",
    '--gin.e=@f.g',
    '--gin.H=%I',
  ]


def test_validation_chooses_among_means():
  rows = [
    {'lr': lr, 'seed': seed, 'eval/accuracy': value}
    for lr, values in {
      1: (0.1, 0.9),
      2: (0.6, 0.6),
      3: (0.99, 0.99, 0.99, np.nan),
    }.items()
    for seed, value in enumerate(values)
  ]
  rows += [{'lr': 4, 'seed': seed, 'eval/accuracy': 1.0} for seed in range(3)]
  rows += [{'lr': 4, 'seed': 3}]
  key, chosen = sweep.best(rows, 'eval/accuracy', 'lr')
  assert key == (2,) and [row['seed'] for row in chosen] == [0, 1]


@pytest.mark.parametrize(
  'file',
  sorted((tiny_scripts.ROOT / 'experiments').glob('*/sweep.py')),
  ids=lambda f: f.parent.name,
)
def test_experiments_are_sweeps(file, tmp_path, monkeypatch, capsys):
  """All runs of all scales have a config that is there, and a command."""
  found = runpy.run_path(str(file))
  # By itself, for what has results is not listed.
  shutil.copy(file, tmp_path)
  for scale, runs in found['SCALES'].items():
    sweep.check(runs)
    assert {(tiny_scripts.ROOT / r['config']).is_file() for r in runs} == {True}
    args = tmp_path, f'--scale={scale}', '--list'
    assert tiny_scripts.main(monkeypatch, 'sweep.py', *args) is None
    assert 'scripts/train.py' in capsys.readouterr().out
    metrics = 'eval/accuracy', 'test/accuracy', 'scores/mean', 'scores/a/f1'
    made = dict.fromkeys(metrics, 0.5)
    curve = [[0, 0, 0, 0.5], [2, 4, 6, 0.25]]
    measured = 'eval/loss', 'eval/accuracy'
    rows = [
      {
        **run,
        **made,
        'curves': dict.fromkeys((*measured, run.get('metric', '')), curve),
      }
      for run in runs
    ]
    shared = found.get('ENTRIES', {})
    arms = {({**shared, **r}['modality'], r['arm']) for r in runs}
    for modality, checks in by_modality(found) if scale == 'laptop' else ():
      for check in checks:
        for arm in (check.first, check.second, *check.beyond):
          assert (modality, arm) in arms, f'{check} has no arm {arm}'
    bare = {k: v for k, v in rows[0].items() if k not in made}
    diverged = bare | {'error': 'FloatingPointError'}
    for those in (rows, [diverged, *rows[1:]], [diverged]):
      assert isinstance(found['summary'](those), str)
    assert found['summary'](rows)


def by_modality(found):
  """The checks of an experiment."""
  checks = found['CHECKS']
  if isinstance(checks, dict):
    return checks.items()
  shared = found.get('ENTRIES', {})
  run = {{**shared, **r}['modality'] for r in found['SCALES']['laptop']}
  return [(modality, checks) for modality in run]


@pytest.fixture
def finetuning():
  file = tiny_scripts.ROOT / 'experiments/01_vit_finetune/sweep.py'
  return runpy.run_path(str(file))


def test_finetuning_is_chosen_by_validation_and_reported_on_test(finetuning):
  accuracies = {0.1: (0.6, 0.9), 0.03: (0.8, 0.7), 0.01: (0.7, 0.5)}
  names = 'eval/accuracy', 'test/accuracy'
  rows = [
    run | dict(zip(names, accuracies[run['peak']], strict=True))
    for run in finetuning['SCALES']['laptop']
  ]
  lines = finetuning['summary'](rows).splitlines()
  assert [line.split(':')[0] for line in lines] == ['dense', 'upcycled']
  for line in lines:
    assert ' at 0.03 are best on validation; test accuracy 70.00%' in line
    assert '(70.00 to 70.00, 3 seeds)' in line


@pytest.mark.parametrize('scale', ['laptop', 'base'])
def test_arms_of_finetuning(scale, finetuning):
  """One differs from the other in its checkpoint and in being dense."""
  arms = sweep.groups(finetuning['SCALES'][scale], 'arm')
  dense, sparse = ([r['bindings'] for r in runs] for runs in arms.values())
  for a, b in zip(dense, sparse, strict=True):
    a, b = dict(a), dict(b)
    assert a.pop('vit.preset.moe', 'absent') is None
    folders = [x.pop('CHECKPOINT').rsplit('/', 1)[-1] for x in (a, b)]
    assert folders == ['dense', 'upcycle']
    assert a == b
  for run in finetuning['SCALES'][scale]:
    for name in ('train.train.seed', 'train/images.batches.seed'):
      assert run['bindings'][name] == run['seed']


def test_the_papers_finetuning_grid(finetuning):
  runs = finetuning['SCALES']['base']
  grid = {
    (b['STEPS'], b['WARMUP'], b['PEAK'])
    for b in (run['bindings'] for run in runs)
  }
  assert grid == {
    (*length, peak)
    for length in ((5000, 200), (10_000, 400))
    for peak in (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
  }
  assert len(runs) == 2 * 12
