# SPDX-License-Identifier: Apache-2.0
"""Metrics of text-to-text tasks on examples computed by hand."""

import pytest

from upcycle.data import text_metrics as metrics


def test_accuracy():
  assert metrics.accuracy(['a', 'b', 'c', 'd'], ['a', 'b', 'c', '']) == {
    'accuracy': 75
  }


def test_mean_f1_of_three_classes():
  # Class 0: 2 * 1 / (2 + 1); class 1: 2 * 1 / (1 + 2); class 2: nowhere.
  found = metrics.mean_3class_f1([0, 0, 1], [0, 1, 1])
  assert found['mean_3class_f1'] == pytest.approx(100 * (4 / 3) / 3)


def test_f1_counts_no_answer_as_wrong():
  # Targets 1, 0, 1; the last prediction, neither 0 nor 1, counts as 0.
  found = metrics.f1([1, 0, 1], [1, 0, -1])
  assert found['f1'] == pytest.approx(100 * 2 / 3)
  assert metrics.f1([0, 1], [-1, 1])['f1'] == pytest.approx(100 * 2 / 3)


def test_groups_of_answers():
  targets = [{'value': v, 'group': g} for v, g in ((1, 0), (0, 0), (1, 1))]
  predictions = [{'value': v} for v in (1, 0, 0)]
  assert metrics.grouped_f1(targets, predictions)['f1'] == pytest.approx(
    200 / 3
  )
  assert metrics.grouped_exact_match(targets, predictions) == {
    'exact_match': 50
  }


def test_squad_takes_the_best_answer():
  assert metrics.normalize_answer('The  Cat, a DOG!') == 'cat dog'
  found = metrics.squad([['a dog', 'the big cat'], ['x']], ['Big cat!', 'y z'])
  assert found == {'em': 50, 'f1': 50}
  found = metrics.squad([['red house']], ['house of bricks'])
  assert found == {'em': 0, 'f1': pytest.approx(40)}


def test_record_counts_every_query_once():
  targets = [{'value': ['cat', 'dog'], 'group': 1}] * 2
  targets += [{'value': ['bee'], 'group': 2}]
  predictions = [{'value': v} for v in ('dog', 'fox', 'fox')]
  assert metrics.record(targets, predictions) == {'em': 50, 'f1': 50}
