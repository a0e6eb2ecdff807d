# SPDX-License-Identifier: Apache-2.0
"""Scaling laws: known ones are found again, and where they cross."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny_scripts
from upcycle.results import scaling, scaling_words, tables

LAW = scaling.Law(A=1.1, a=0.15, b=0.2, S=1.65, s=0.45, E=1.7, c=0.02)
UNIT, STEP = 2e12, 1e9  # 2,000 dense steps
FIT = 'experiments/20_scaling/fit.py'


def rows(law=LAW, shares=(0.25, 0.5, 1), seeds=(0, 1, 2), noise=1e-3):
  """Results of a law: a step of a sparse model costs two of a dense one."""
  rng = np.random.default_rng(0)
  found = []
  for seed in seeds:
    for arm, share, steps in (
      *((f'upcycled from {x:.0%}', x, 2000) for x in shares),
      ('scratch', 0, 4000),
    ):
      x = np.linspace(0, steps, 21)
      extra = np.maximum(x, 1) * 2 * STEP / UNIT
      loss = law.upcycled(share, extra) if share else law.scratch(extra)
      loss = loss * np.exp(noise * rng.normal(size=len(x)))
      curve = np.stack([x, x * 2 * STEP, x, loss], 1).tolist()
      found.append(row(arm, seed, 2000 * share + steps, curve))
    curve = [[0, 0, 0, 3.0], [2000, 2000 * STEP, 9.0, 2.9]]
    found.append(row('dense from 100%', seed, 4000, curve))
  return found


def row(arm, seed, step, curve):
  return {
    'name': f'{arm}_{seed}',
    'scale': 'laptop',
    'modality': 'language',
    'arm': arm,
    'seed': seed,
    'step': step,
    'curves': {'eval/loss': curve},
  }


def points(**changes):
  those = [r for r in rows(**changes) if not r['arm'].startswith('dense')]
  return scaling.points(those, 'eval/loss', STEP)


def test_points_are_budgets_in_units_of_the_largest_dense_one():
  data, unit = points(seeds=(3,), noise=0)
  assert unit == UNIT
  assert {*data.seed} == {3}
  np.testing.assert_allclose(np.unique(data.dense), [0, 0.25, 0.5, 1])
  upcycled = data.dense == 0.5
  np.testing.assert_allclose(data.extra[upcycled], np.arange(0.2, 2.01, 0.1))
  np.testing.assert_allclose(
    data.loss[upcycled], LAW.upcycled(0.5, data.extra[upcycled])
  )


def test_a_run_that_another_goes_through_counts_once():
  whole = [r for r in rows() if not r['arm'].startswith('dense')]
  short = [
    {
      **r,
      'step': r['step'] - curve[-1][0] + curve[-2][0],
      'curves': {'eval/loss': curve[:-1]},
    }
    for r in whole
    for curve in r['curves'].values()
  ]
  twice = scaling.points([*short, *whole], 'eval/loss', STEP)
  once = scaling.points(whole, 'eval/loss', STEP)
  for a, b in zip(twice[0], once[0], strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_law_is_found_again():
  law = scaling.fit(points(noise=0)[0])
  np.testing.assert_allclose(law, LAW, rtol=1e-3, atol=1e-3)


def test_with_noise_losses_and_crossings_are():
  data, _ = points(noise=2e-3)
  law = scaling.fit(data)
  np.testing.assert_allclose(law.E, LAW.E, rtol=0.15)
  for D in (0.25, 0.5, 1):
    np.testing.assert_allclose(
      law.upcycled(D, 1), LAW.upcycled(D, 1), rtol=2e-3
    )
    found, wanted = (scaling.crossing(x, D) for x in (law, LAW))
    np.testing.assert_allclose(found, wanted, rtol=0.15)


def test_two_dense_budgets_have_no_interaction():
  law = scaling.fit(
    points(law=LAW._replace(c=0.0), shares=(0.5, 1), noise=0)[0]
  )
  assert law.c == 0
  np.testing.assert_allclose(law, LAW._replace(c=0.0), rtol=1e-3, atol=1e-6)


def test_one_bad_evaluation_moves_little():
  data, _ = points(noise=0)
  data.loss[5] *= 1.5
  law = scaling.fit(data)
  np.testing.assert_allclose(
    law.upcycled(0.5, 1), LAW.upcycled(0.5, 1), rtol=2e-3
  )


def test_crossing():
  """A U^-b = S U^-s where log U = log(S / A) / (s - b), of D = 1 or a = 0."""
  law = scaling.Law(A=1, a=0, b=0.1, S=np.exp(0.2), s=0.3, E=2)
  np.testing.assert_allclose(scaling.crossing(law, 1), np.exp(0.2 / 0.2))
  np.testing.assert_allclose(scaling.crossing(law, 0.5), np.exp(0.2 / 0.2))
  from_less = scaling.crossing(law._replace(a=0.1), 0.5)
  np.testing.assert_allclose(from_less, np.exp((0.2 + 0.1 * np.log(0.5)) / 0.2))
  assert scaling.crossing(law._replace(S=1e4), 1) == np.inf
  assert scaling.crossing(law._replace(S=1e-4), 1) == 0


def test_intervals_are_of_redraws_of_as_many_seeds():
  """A seed alone is drawn three times in 1 of 27: beyond 90% on either side."""
  data, _ = points(noise=0)
  data = data._replace(loss=data.loss * (1 + 0.1 * data.seed))

  def answers(law):
    return [law.upcycled(1, 1), scaling.crossing(law, 1)]

  low, high = scaling.bootstrap(data, answers, level=0.9)
  least, most = LAW.upcycled(1, 1) * np.array([1, 1.2])
  assert least * 1.001 < low[0] < high[0] < most * 0.999
  one = scaling.bootstrap(points(seeds=(0,))[0], answers)
  np.testing.assert_array_equal(*one)


def test_too_little_is_an_error():
  with pytest.raises(ValueError, match='1 dense budgets, at least 2'):
    scaling.fit(points(shares=(1,))[0])
  data, _ = points()
  kept = scaling.Points(*(x[data.dense > 0] for x in data))
  with pytest.raises(ValueError, match='0 budgets of MoEs from scratch'):
    scaling.fit(kept)
  with pytest.raises(ValueError, match='No run from a dense model'):
    scaling.points([], 'eval/loss', STEP)


def run(folder):
  return subprocess.run(
    [sys.executable, FIT, f'--experiments={folder}', f'--output={folder}'],
    cwd=tiny_scripts.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_script(tmp_path):
  by_folder = {'06_pretraining': rows(), '04_scratch': []}
  for name, those in by_folder.items():
    (tmp_path / name).mkdir()
    lines = ''.join(json.dumps(r) + '\n' for r in those)
    (tmp_path / name / 'results.jsonl').write_text(lines)
  out = run(tmp_path)
  assert out.returncode == 0, out.stderr
  assert out.stdout.count('extrapolated') == 3  # all runs end before
  written = json.loads((tmp_path / 'fit.json').read_text())
  fits, fitted = written['laptop'], written['laptop']['language']
  assert fitted['seeds'] == 3
  assert [x['dense'] for x in fitted['crossings']] == [0.25, 0.5, 1]
  for x in fitted['crossings']:
    wanted = scaling.crossing(LAW, x['dense']) / x['dense']
    assert x['share']['mean'] == pytest.approx(wanted, 0.1)
  assert (tmp_path / 'figures/losses.svg').exists()
  assert scaling_words.answers(fits)['language'].endswith('), extrapolated')
  fitted['crossings'][0]['share']['high'] = None  # of infinity
  named = {row['what']: row['value'] for row in scaling_words.table(fits)}
  assert len(named) == 7 + 3
  shares = [tables.cell(v) for k, v in named.items() if 'dense budget' in k]
  assert shares[0].endswith('to never)') and 'never' not in shares[1]
  assert 'run the experiments first' in run(tmp_path / 'nowhere').stderr
  (tmp_path / '06_pretraining/results.jsonl').write_text('')
  assert 'no results of scale laptop' in run(tmp_path).stderr


def test_runs_that_diverged_are_left_out():
  """Where they ended says nothing of their dense model."""
  whole = [r for r in rows() if not r['arm'].startswith('dense')]
  diverged = {**whole[0], 'seed': 0, 'step': 77, 'error': 'not finite'}
  more = scaling.points([*whole, diverged], 'eval/loss', STEP)
  once = scaling.points(whole, 'eval/loss', STEP)
  for a, b in zip(more[0], once[0], strict=True):
    np.testing.assert_array_equal(a, b)


def test_seeds_that_lack_a_budget_are_left_out():
  """A redraw of seeds without all budgets could not be fitted."""
  lacking = rows(shares=(0.25, 1), seeds=(3,))
  those = [r for r in [*rows(), *lacking] if not r['arm'].startswith('dense')]
  data, incomplete = scaling.complete(
    scaling.points(those, 'eval/loss', STEP)[0]
  )
  assert incomplete == [3] and {*data.seed} == {0, 1, 2}
