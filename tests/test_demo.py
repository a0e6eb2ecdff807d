# SPDX-License-Identifier: Apache-2.0
"""What the demo says about the evaluations of two runs."""

import runpy

import pytest

from tests import tiny_scripts

DEMO = runpy.run_path(str(tiny_scripts.ROOT / 'scripts/demo.py'))
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
  assert DEMO['pace'](DENSE) == pytest.approx(0.1)
  assert DEMO['pace'](SPARSE) == pytest.approx(0.2)


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
  assert DEMO['verdict'](*rows, 'accuracy', more, axis) == said


def test_summary():
  demo = DEMO['Demo']('title', None, METRICS)
  first, second, last = DEMO['summary'](demo, DENSE, SPARSE).splitlines()
  assert first == (
    'precision: 0.500 at the dense checkpoint, 0.400 right after surgery; 200 '
    'steps later 0.700 dense and 0.800 upcycled. For equal steps the upcycled '
    'model is ahead by 0.100, for equal compute time the dense model is ahead '
    'by 0.050.'
  )
  assert second.startswith('transfer: 0.300 at the dense checkpoint, 0.300 ')
  assert 'For equal steps the dense model is ahead by 0.020, for' in second
  assert last == 'An upcycled step takes 2.00 times as long.'
