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
from upcycle.results import spent

METRICS = {'accuracy': 'precision', '10shot/mnist': 'transfer'}
# A step of the upcycled model takes twice as long.
DENSE = [
  {'split': 'eval', 'step': 100, 'seconds': 7.0, 'accuracy': 0.50},
  {'split': 'eval', 'step': 200, 'seconds': 17.0, 'accuracy': 0.60},
  {'split': 'eval', 'step': 300, 'seconds': 27.0, 'accuracy': 0.70},
  {'split': 'eval', 'step': 100, 'seconds': 7.0, '10shot/mnist': 0.3},
  {'split': 'eval', 'step': 300, 'seconds': 27.0, '10shot/mnist': 0.4},
]
SPARSE = [
  {'split': 'eval', 'step': 100, 'seconds': 1.0, 'accuracy': 0.40},
  {'split': 'eval', 'step': 200, 'seconds': 21.0, 'accuracy': 0.65},
  {'split': 'eval', 'step': 300, 'seconds': 41.0, 'accuracy': 0.80},
  {'split': 'eval', 'step': 100, 'seconds': 1.0, '10shot/mnist': 0.3},
  {'split': 'eval', 'step': 300, 'seconds': 41.0, '10shot/mnist': 0.38},
]


@pytest.mark.parametrize(
  'axis, metric, said',
  [
    ('steps', 'accuracy', 'the b model is ahead by 0.100'),
    ('steps', 'loss', 'the a model is ahead by 0.100'),
    # After 20 seconds: 0.65 of the one, 0.70 of the other.
    ('seconds', 'accuracy', 'the a model is ahead by 0.050'),
    ('seconds', 'loss', 'the b model is ahead by 0.050'),
  ],
)
def test_who_is_ahead_of_what_both_have_spent(axis, metric, said):
  runs = {'the a': DENSE[:3], 'the b': SPARSE[:3]}
  curves = {
    name: [spent.of_rows(rows).curves['eval/accuracy']]
    for name, rows in runs.items()
  }
  assert demo.verdict(metric, curves, axis) == said


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
    rows = [row | {'loss': 1 / row['step']} for row in rows]
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
