# SPDX-License-Identifier: Apache-2.0
"""Comparisons of runs whose answers are known."""

import json
import math

import numpy as np
import pytest

from tests import tiny_scripts
from upcycle import results
from upcycle.results import compare, spent

COST = {
  'step_flops': 300,
  'forward_flops': 100,
  'tokens': 10,
  'parameters': 50,
  'active_parameters': 50,
  'device': 'cpu',
  'devices': 1,
  'jax': '0',
  'cpu': 'this one',
  'cores': 2,
}
SPARSE_COST = COST | {
  'step_flops': 600,
  'forward_flops': 200,
  'parameters': 200,
  'active_parameters': 75,
}
# Of 100 steps from step 1000 on; a second a step, and two.
DENSE = 4.0, 3.0, 2.5
SPARSE = 5.0, 2.5, 2.0


def metrics(losses, pace, cost=None, extra=()):
  """Rows of a run whose evaluations, after 0, 50 and 100 steps, gave these."""
  rows = [] if cost is None else [{'step': 1000, 'split': 'cost', **cost}]
  for i, loss in enumerate(losses):
    at = {'step': 1000 + 50 * i, 'seconds': 7 + 50 * i * pace}
    if i:
      train = {'loss': 9.0, 'tokens_per_second': 10 / pace}
      rows.append({**at, 'split': 'train', **train})
    values = {'loss': loss, 'accuracy': 1 / loss, 'z_loss': 0.0}
    speed = {'tokens_per_second': 20.0 + 20 * i}
    rows.append({**at, 'split': 'eval', **values, **speed})
    if i != 1:
      shots = {'10shot/mnist': 0.1 * i, 'evaluation_seconds': 3.0}
      rows.append({**at, 'split': 'fewshot', **shots})
  if cost is not None:
    last = {'step': 1100, 'split': 'cost', 'peak_memory': 1e9}
    rows.append({**cost, **last})
  return [*rows, *extra]


def arms(*runs):
  return {name: [spent.of_rows(r) for r in of] for name, *of in runs}


BOTH = arms(
  ('dense', metrics(DENSE, 1, COST)),
  ('sparse', metrics(SPARSE, 2, SPARSE_COST)),
)


def table(arms, metric='loss'):
  """{(of, what): the row's other values}."""
  rows = compare.rows(arms, metric)
  return {(r['of'], r['what']): [*r.values()][2:] for r in rows}


@pytest.mark.parametrize(
  'what, dense, sparse, ratio',
  [
    ('at the start', 4.0, 5.0, 1.25),
    ('at the end', 2.5, 2.0, 0.8),
    ('at equal steps (100)', 2.5, 2.0, 0.8),
    # Half of the sparse steps.
    ('at equal FLOPs (30,000)', 2.5, 2.5, 1.0),
    ('at equal seconds (100)', 2.5, 2.5, 1.0),
    ('steps to 2.5, the end of dense', 100, 50, 0.5),
    ('FLOPs to 2.5, the end of dense', 30_000, 30_000, 1.0),
    ('seconds to 2.5, the end of dense', 100, 100, 1.0),
    ('steps to 2, the end of sparse', 'never', 100, None),
    ('FLOPs to 2, the end of sparse', 'never', 60_000, None),
    ('seconds to 2, the end of sparse', 'never', 200, None),
  ],
)
def test_quality(what, dense, sparse, ratio):
  assert table(BOTH)['eval/loss', what] == [dense, sparse, ratio]


def test_cost():
  found = table(BOTH)
  assert {k: v for k, v in found.items() if k[0] != 'eval/loss'} == {
    ('training', 'FLOPs a step'): [300, 600, 2],
    ('training', 'seconds a step'): [1, 2, 2],
    ('training', 'tokens a second'): [10, 5, 0.5],
    ('training', 'peak memory in bytes'): [1e9, 1e9, 1],
    ('parameters', 'in all'): [50, 200, 4],
    ('parameters', 'active'): [50, 75, 1.5],
    ('inference', 'FLOPs per token'): [10, 20, 2],
    # The best of 20, 40 and 60 tokens a second.
    ('inference', 'seconds per token (eval)'): [1 / 60, 1 / 60, 1],
  }
  assert compare.notes(BOTH) == []


def test_values_between_evaluations():
  other = arms(('dense', metrics(DENSE[:2], 1)), ('sparse', metrics(SPARSE, 2)))
  found = table(other)
  # After 50 seconds the sparse run is at step 25; its loss falls from 5 to 2.5.
  assert found['eval/loss', 'at equal seconds (50)'] == [3.0, 3.75, 1.25]
  row = found['eval/loss', 'steps to 3, the end of dense']
  assert row == [50, 40, 0.8]


def test_the_sign_of_better():
  names = 'eval/loss', 'eval/z_loss', 'eval/accuracy', 'fewshot/10shot/mnist'
  assert [spent.sign(name) for name in names] == [-1, 0, 1, 1]
  row = table(BOTH, 'accuracy')[
    'eval/accuracy', 'steps to 0.5, the end of sparse'
  ]
  assert row == ['never', 100, None]


def test_first_reached_counts():
  curve = np.array([[0, 0, 0, 1.0], [10, 0, 0, 3.0], [20, 0, 0, 2.0]])
  assert spent.needed(curve, 0, 2.0, 1) == 5
  assert spent.needed(curve, 0, 1.0, 1) == 0
  assert spent.needed(curve, 0, 3.5, 1) == math.inf


def test_metrics_are_those_that_all_have():
  assert compare.metrics(BOTH) == [
    'eval/loss',
    'eval/accuracy',
    'fewshot/10shot/mnist',
  ]
  bare = [r for r in metrics(SPARSE, 2) if r['split'] != 'fewshot']
  fewer = BOTH | {'sparse': [spent.of_rows(bare)]}
  assert compare.metrics(fewer) == ['eval/loss', 'eval/accuracy']
  assert compare.metrics(BOTH, '10shot/mnist') == ['fewshot/10shot/mnist']
  with pytest.raises(
    ValueError, match=r'no metric bleu .*they share eval/loss'
  ):
    compare.rows(BOTH, 'bleu')


def test_seeds_have_a_mean_and_an_interval():
  seeds = [metrics((4.0, 3.0, x), 1, COST) for x in (2.4, 2.5, 2.6)]
  found = table(arms(('a', *seeds), ('b', metrics(SPARSE, 2, SPARSE_COST))))
  mean, other, ratio = found['eval/loss', 'at the end']
  assert mean['mean'] == pytest.approx(2.5) and other == 2.0
  assert 2.4 <= mean['low'] < 2.5 < mean['high'] <= 2.6
  assert ratio == pytest.approx(0.8)
  first, second, _ = found['eval/loss', 'steps to 2.5, the end of a']
  assert (first, second) == ('1 of 3 never', 50)


def test_runs_without_cost_say_so_and_have_steps_and_seconds():
  both = {'old': [spent.of_rows(metrics(DENSE, 1))], 'new': BOTH['sparse']}
  found = table(both)
  assert found['training', 'FLOPs a step'] == ['unknown', 600, None]
  assert found['training', 'seconds a step'] == [1, 2, 2]
  at_equal = found['eval/loss', 'at equal FLOPs (unknown)']
  assert at_equal == ['unknown', 'unknown', None]
  assert found['eval/loss', 'FLOPs to 2.5, the end of old'][0] == 'unknown'
  (note,) = compare.notes(both)
  assert note.startswith('Without a line of cost in metrics.jsonl: old.')


def test_different_machines_are_noted():
  away = metrics(SPARSE, 2, SPARSE_COST | {'cpu': 'another'})
  (note,) = compare.notes(BOTH | {'sparse': [spent.of_rows(away)]})
  assert 'different machines: dense on device cpu' in note
  assert 'sparse on' in note and 'cpu another' in note


def test_memory_of_other_things_is_noted():
  runs = [
    spent.of_rows(metrics(SPARSE, 2, SPARSE_COST | {'memory_of': of}))
    for of in ('host', 'device')
  ]
  (note,) = compare.notes({'sparse': runs})
  assert note.startswith('Peak memory is of the fullest device in some runs')
  assert not compare.notes({'sparse': runs[:1]})


@pytest.fixture
def folders(tmp_path):
  """A dense run of two seeds and a sparse run, as arguments of the script."""
  runs = {
    'dense0': metrics(DENSE, 1, COST),
    'dense1': metrics(DENSE, 1, COST),
    'sparse0': metrics(SPARSE, 2, SPARSE_COST),
  }
  for name, rows in runs.items():
    for row in rows:
      results.append(tmp_path / name / 'metrics.jsonl', row)
  return [f'{name[:-1]}={tmp_path / name}' for name in runs]


def call(monkeypatch, *args):
  return tiny_scripts.main(monkeypatch, 'compare.py', *args)


def test_the_script_prints_and_writes(folders, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('COLUMNS', '140')
  output = tmp_path / 'out/table.md'
  args = *folders, '--metric=loss', f'--output={output}'
  assert call(monkeypatch, *args) is None
  printed = capsys.readouterr().out
  assert 'sparse / dense' in printed and '2.5 (2.5 to 2.5)' in printed
  lines = output.read_text().splitlines()
  assert lines[0] == '| of | what | dense | sparse | sparse / dense |'
  assert lines[1] == '| --- | --- | ---: | ---: | ---: |'
  assert lines[2] == '| eval/loss | at the start | 4 (4 to 4) | 5 | 1.25 |'
  assert '| parameters | active | 50 (50 to 50) | 75 | 1.5 |' in lines
  assert call(monkeypatch, *folders[1:], '--json') is None
  found = json.loads(capsys.readouterr().out)
  assert found == {'rows': compare.rows(BOTH), 'notes': []}


def test_bad_input_is_one_clear_error(folders, tmp_path, monkeypatch):
  error = call(monkeypatch, *folders[:2])
  assert error == 'error: Runs are NAME=MODEL_DIR, of two names or more.'
  error = call(monkeypatch, 'dense', 'what=b', *folders)
  assert error.endswith('of two names or more; not dense, what=b.')
  empty = tmp_path / 'empty'
  rows = [row for row in metrics(DENSE, 1) if row['split'] == 'train']
  results.append(empty / 'metrics.jsonl', rows[0])
  error = call(monkeypatch, *folders, f'a={empty}', f'b={tmp_path / "nowhere"}')
  assert f'{empty}: nothing was evaluated' in error and 'nowhere' in error
