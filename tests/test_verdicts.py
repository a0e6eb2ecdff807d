# SPDX-License-Identifier: Apache-2.0
"""Verdicts: what a check compares, and when it holds."""

import json
import math

import pytest

from upcycle.results import verdicts
from upcycle.results.verdicts import Check


def row(arm, seed, *values, metric='eval/loss', step_flops=10):
  """A run that is evaluated every 10 steps, which take step_flops each."""
  curve = [
    [10 * i, 10 * i * step_flops, 20 * i, y] for i, y in enumerate(values)
  ]
  return {
    'arm': arm,
    'seed': seed,
    'metric': metric,
    'modality': 'language',
    'curves': {metric: curve},
  }


def arms(first, second, **options):
  """Both arms with as many seeds as there are values, their last third."""
  pairs = (('a', first), ('b', second))
  return [
    row(arm, seed, 5.0, 4.0, value, value, **options)
    for arm, values in pairs
    for seed, value in enumerate(values)
  ]


@pytest.mark.parametrize(
  'first, second, verdict',
  [
    ((1.0, 2.0, 3.0), (1.1, 2.11, 3.12), verdicts.HOLDS),
    ((1.1, 2.11, 3.12), (1.0, 2.0, 3.0), verdicts.FAILS),
    ((1.0, 2.0, 3.0), (1.1, 2.2, 2.9), verdicts.UNDECIDED),
    ((1.0, 2.0, 3.0), (1.01, 2.2, 3.4), verdicts.UNDECIDED),
    ((1.0, 2.0), (1.1, 2.2), verdicts.UNDECIDED),
  ],
)
def test_a_lower_loss_is_better_seed_by_seed(first, second, verdict):
  """However much seeds differ from each other."""
  found = verdicts.find(Check('a', 'b'), arms(first, second))
  assert found.verdict == verdict and found.seeds == len(first)
  mean = sum(b - a for a, b in zip(first, second, strict=True)) / len(first)
  assert found.mean == pytest.approx(mean)
  assert found.low <= found.mean <= found.high


def test_a_metric_that_a_scale_does_not_measure_decides_nothing():
  rows = arms((1.0, 2.0, 3.0), (1.1, 2.11, 3.12))
  found = verdicts.find(Check('a', 'b', metric='fewshot/10shot'), rows)
  assert found.verdict == verdicts.UNDECIDED and not found.seeds


def test_a_higher_accuracy_is_better():
  rows = arms((0.5, 0.6, 0.7), (0.4, 0.5, 0.61), metric='eval/accuracy')
  assert verdicts.find(Check('a', 'b'), rows).verdict == verdicts.HOLDS


@pytest.mark.parametrize(
  'margin, verdict',
  [
    (0.3, verdicts.HOLDS),
    (0.12, verdicts.UNDECIDED),
    (0.05, verdicts.FAILS),
  ],
)
def test_equal_is_within_a_margin(margin, verdict):
  rows = arms((1.0, 1.0, 1.0), (1.1, 1.12, 1.11))
  check = Check('a', 'b', relation='equal', margin=margin)
  assert verdicts.find(check, rows).verdict == verdict


def test_no_gain_is_one_sided():
  def verdict(margin):
    check = Check('a', 'b', relation='no gain', margin=margin)
    return verdicts.find(check, rows).verdict

  rows = arms((1.1, 1.2, 1.15), (1.0, 1.0, 1.0))
  assert verdict(0.01) == verdicts.HOLDS  # it is worse
  rows = arms((1.0, 1.0, 1.0), (1.1, 1.11, 1.12))
  assert verdict(0.01) == verdicts.FAILS
  assert verdict(0.11) == verdicts.UNDECIDED


def test_the_interval_is_students():
  low, high = verdicts.t_interval([1.0, 2.0, 3.0])
  assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)


def test_seeds_that_only_one_arm_has_do_not_count():
  rows = arms((1.0, 2.0, 3.0, 4.0), (1.5, 2.5, 3.5))
  assert verdicts.find(Check('a', 'b'), rows).seeds == 3
  nothing = verdicts.find(Check('a', 'c'), rows)
  assert nothing.seeds == 0 and nothing.verdict == verdicts.UNDECIDED


def test_a_run_that_diverged_is_worse_than_all():
  rows = arms((1.0, 2.0, 3.0), (1.5, 2.5, 3.5))
  diverged = [
    {k: v for k, v in row.items() if k != 'curves'} | {'error': 'not finite'}
    if row['arm'] == 'a'
    else row
    for row in rows
  ]
  assert verdicts.find(Check('a', 'b'), diverged).verdict == verdicts.FAILS
  assert verdicts.find(Check('b', 'a'), diverged).verdict == verdicts.HOLDS
  both = [{**row, 'error': 'not finite'} for row in rows]
  assert verdicts.find(Check('a', 'b'), both).verdict == verdicts.UNDECIDED
  # Right after surgery there was something, if it was finite.
  bad = json.loads(json.dumps(both))
  bad[0]['curves']['eval/loss'][0][3] = None
  assert verdicts.find(Check('a', 'b', 'start'), bad).mean == -math.inf
  assert verdicts.find(Check('a', 'b', 'start'), both).mean == 0
  one = [both[0], *rows[1:3], both[3], *rows[4:]]
  assert verdicts.find(Check('a', 'b'), one)[1:5] == (0.5, 0.5, 0.5, 2)
  some = [*rows[:2], diverged[2], *rows[3:]]
  assert verdicts.find(Check('a', 'b'), some).verdict == verdicts.UNDECIDED


def test_what_both_have_spent_decides_where_they_are_compared():
  a, b = row('a', 0, 9, 5, 4, step_flops=20), row('b', 0, 8, 6, 5)

  def ahead(**options):
    return verdicts.difference(Check('a', 'b', **options), a, b)

  # Means of the last third are the values after five sixths.
  assert ahead() == pytest.approx(1) and ahead(at='start') == -1
  # Of 200: a after 8.33 steps, b after 16.67.
  assert ahead(at='FLOPs') == pytest.approx(-1 / 3)
  assert ahead(share=0.5) == pytest.approx(2 / 3)
  assert ahead(share=0.25) == pytest.approx(-1 / 6)
  assert ahead(relation='widens') == pytest.approx(1 / 3)
  # To what b has reached, 5.33.
  cheaper = ahead(at='FLOPs', relation='cheaper')
  assert cheaper == pytest.approx(math.log(10 / 11))
  cheaper = ahead(at='steps', relation='cheaper')
  assert cheaper == pytest.approx(math.log(20 / 11))
  never = row('a', 0, 9, 8, 7)
  check = Check('a', 'b', relation='cheaper')
  found = verdicts.difference(check, never, b)
  assert found == pytest.approx(math.log(5 / 12))


def test_a_gain_is_compared_with_another():
  rows = [
    row(arm, seed, 9, 9, end + seed, end + seed)
    for arm, end in (('a', 1), ('b', 3), ('c', 2), ('d', 5))
    for seed in range(3)
  ]
  check = Check('a', 'b', beyond=('c', 'd'))
  assert verdicts.find(check, rows).mean == pytest.approx(2 - 3)


def test_gains_over_the_same_arm_are_compared():
  rows = arms((1.0, 2.0, 3.0), (1.5, 2.5, 3.5))
  check = Check('a', 'b', beyond=('a', 'b'))
  assert verdicts.find(check, rows)[1:5] == (0, 0, 0, 3)


def test_a_claim_is_all_of_its_checks():
  rows = arms((1.0, 2.0, 3.0), (1.1, 2.11, 3.12))
  good, bad = Check('a', 'b'), Check('b', 'a')

  def overall(*checks):
    found = verdicts.by_modality(checks, rows)
    return verdicts.overall(found['language'])

  assert overall(good) == verdicts.HOLDS
  assert overall(good, bad) == verdicts.FAILS
  assert overall(good, bad._replace(decides=False)) == verdicts.HOLDS
  assert overall(good, Check('a', 'c')) == verdicts.UNDECIDED
  assert overall() == verdicts.NO_CLAIM


def test_what_is_printed_says_what_was_compared():
  checks = (
    Check('a', 'b', 'FLOPs', share=0.25),
    Check('a', 'b', relation='equal', margin=0.3),
  )
  rows = arms((1.0, 2.0, 3.0), (1.1, 2.11, 3.12))
  first, *lines = verdicts.summary({'language': checks})(rows).splitlines()
  assert first == 'language: undecided'
  assert lines[0].startswith('  a is better than b after 25%, for equal FLOPs:')
  assert 'a is within 0.3 of b for equal steps: +0.1100' in lines[1]
  assert '3 seeds), ' in lines[1]
