# SPDX-License-Identifier: Apache-2.0
"""The demo: its commands, and what it says of the evaluations of two runs."""

import copy
import inspect
import json
import subprocess
import sys

import gin
import pytest

from scripts import demo
from tests import tiny_scripts
from upcycle import train
from upcycle.data import prepare, prepare_images

METRICS = (('accuracy', 'precision', True), ('10shot/mnist', 'transfer', True))
# A step of the upcycled model takes twice as long.
DENSE = [
  {'step': 100, 'seconds': 7.0, 'accuracy': 0.50},
  {'step': 200, 'seconds': 17.0, 'accuracy': 0.60},
  {'step': 300, 'seconds': 27.0, 'accuracy': 0.70},
  {'step': 100, 'seconds': 7.0, '10shot/mnist': 0.3},
  {'step': 300, 'seconds': 27.0, '10shot/mnist': 0.4},
]
SPARSE = [
  {'step': 100, 'seconds': 1.0, 'accuracy': 0.40},
  {'step': 200, 'seconds': 21.0, 'accuracy': 0.65},
  {'step': 300, 'seconds': 41.0, 'accuracy': 0.80},
  {'step': 100, 'seconds': 1.0, '10shot/mnist': 0.3},
  {'step': 300, 'seconds': 41.0, '10shot/mnist': 0.38},
]


def test_pace_is_seconds_a_step():
  assert demo.pace(DENSE) == pytest.approx(0.1)
  assert demo.pace(SPARSE) == pytest.approx(0.2)


@pytest.mark.parametrize(
  'axis, more, said',
  [
    ('step', True, 'the upcycled model is ahead by 0.100'),
    ('step', False, 'the dense model is ahead by 0.100'),
    # After 20 seconds: 0.65 of the one, 0.70 of the other.
    ('seconds', True, 'the dense model is ahead by 0.050'),
    ('seconds', False, 'the upcycled model is ahead by 0.050'),
  ],
)
def test_who_is_ahead_of_what_both_have_spent(axis, more, said):
  rows = DENSE[:3], SPARSE[:3]
  assert demo.verdict(*rows, 'accuracy', more, axis) == said


def test_summary():
  made = demo.Demo('title', None, METRICS)
  first, second, last = demo.summary(made, DENSE, SPARSE).splitlines()
  assert first == (
    'precision: 0.500 at the dense checkpoint, 0.400 right after surgery; 200 '
    'steps later 0.700 dense and 0.800 upcycled. For equal steps the upcycled '
    'model is ahead by 0.100, for equal compute time the dense model is ahead '
    'by 0.050.'
  )
  assert second.startswith('transfer: 0.300 at the dense checkpoint, 0.300 ')
  assert 'For equal steps the dense model is ahead by 0.020, for' in second
  assert last == 'An upcycled step takes 2.00 times as long.'


@pytest.fixture
def runs(monkeypatch, tmp_path):
  """Runs the demo's scripts but for the work; collects the MODEL_DIRs."""
  made = []

  def fake_train(config):
    bindings = gin.get_bindings(train.train, resolve_references=False)
    made.append(copy.deepcopy(bindings['model_dir']))
    folder = tmp_path / made[-1]
    folder.mkdir(parents=True)
    rows = DENSE if 'dense' in folder.name else SPARSE
    rows = [row | {'split': 'eval', 'loss': 1 / row['step']} for row in rows]
    lines = ''.join(f'{json.dumps(row)}\n' for row in rows)
    (folder / 'metrics.jsonl').write_text(lines)

  def faked(real):
    def fake(**arguments):
      inspect.signature(real).bind(**arguments)
      (tmp_path / 'data/text/default_vocabulary_8000').mkdir(parents=True)

    return fake

  def call(command, *, cwd, check):
    assert command[0] == sys.executable and cwd == tmp_path and check
    folder, script = command[1].split('/')
    assert folder == 'scripts'
    assert tiny_scripts.main(monkeypatch, script, *command[2:]) is None

  for module in (prepare, prepare_images):
    monkeypatch.setattr(module, 'prepare', faked(module.prepare))
  monkeypatch.setattr(gin, 'get_configurable', lambda function: fake_train)
  monkeypatch.setattr(subprocess, 'run', call)
  monkeypatch.setattr(demo, 'ROOT', tmp_path)
  return made


@pytest.mark.parametrize(
  'name, trained',
  [('t5', ['dense', 'upcycle']), ('vit', ['pretrain', 'dense', 'upcycle'])],
)
def test_its_commands_fit_the_scripts_and_configs(
  name, trained, runs, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(sys, 'argv', ['demo.py', name])
  demo.main()
  folder = f'runs/demo_{name}'
  assert runs == [f'{folder}/{arm}' for arm in trained]
  assert 'An upcycled step takes 2.00 times as long.' in capsys.readouterr().out
  assert list((tmp_path / folder).glob('figure*'))
