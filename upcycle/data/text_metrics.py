# SPDX-License-Identifier: Apache-2.0
"""Metrics of text-to-text tasks: lists of targets and predictions to percent.

Definitions are those of T5's evaluation of SuperGLUE and of the SQuAD script.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import re
import string
from typing import Any

import numpy as np

Metric = Callable[[Sequence, Sequence], dict[str, float]]


def accuracy(targets: Sequence, predictions: Sequence) -> dict[str, float]:
  """Share of predictions that equal their target."""
  same = [t == p for t, p in zip(targets, predictions, strict=True)]
  return {'accuracy': 100 * float(np.mean(same))}


def _f1(targets: np.ndarray, predictions: np.ndarray, label: int) -> float:
  """F1 of one class; 0 where it is neither there nor predicted."""
  hits = np.sum((targets == label) & (predictions == label))
  total = np.sum(targets == label) + np.sum(predictions == label)
  return float(2 * hits / total) if total else 0.0


def mean_3class_f1(
  targets: Sequence[int], predictions: Sequence[int]
) -> dict[str, float]:
  """Unweighted mean of the F1 of classes 0, 1, 2."""
  t, p = np.asarray(targets), np.asarray(predictions)
  return {
    'mean_3class_f1': 100 * float(np.mean([_f1(t, p, c) for c in (0, 1, 2)]))
  }


def f1(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """F1 of class 1; a prediction that is neither 0 nor 1 counts as wrong."""
  t, p = np.asarray(targets), np.asarray(predictions)
  return {'f1': 100 * _f1(t, np.where((p == 0) | (p == 1), p, 1 - t), 1)}


def grouped_f1(
  targets: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]
) -> dict[str, float]:
  """F1 over all answers to all questions (MultiRC's F1a)."""
  return f1([t['value'] for t in targets], [p['value'] for p in predictions])


def grouped_exact_match(
  targets: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]
) -> dict[str, float]:
  """Share of groups in which every prediction is right (MultiRC's EM)."""
  right = collections.defaultdict(list)
  for t, p in zip(targets, predictions, strict=True):
    right[t['group']].append(t['value'] == p['value'])
  return {'exact_match': 100 * float(np.mean([all(r) for r in right.values()]))}


def normalize_answer(text: str) -> str:
  """Lower case without punctuation, articles and spare blanks (SQuAD)."""
  text = ''.join(c for c in text.lower() if c not in string.punctuation)
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def _token_f1(target: str, prediction: str) -> float:
  a, b = target.split(), prediction.split()
  common = sum((collections.Counter(a) & collections.Counter(b)).values())
  return 2 * common / (len(a) + len(b)) if common else 0.0


def squad(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Exact match and token F1, each the best over the answers of a question."""
  em, token_f1 = [], []
  for answers, prediction in zip(targets, predictions, strict=True):
    prediction = normalize_answer(prediction)
    answers = [normalize_answer(a) for a in answers]
    em.append(prediction in answers)
    token_f1.append(max(_token_f1(a, prediction) for a in answers))
  return {'em': 100 * float(np.mean(em)), 'f1': 100 * float(np.mean(token_f1))}


def first_of_group(metric: Metric) -> Metric:
  """Counts one example a group: ReCoRD has one example an accepted answer."""

  def deduplicated(targets, predictions):
    first = {}
    for t, p in zip(targets, predictions, strict=True):
      first.setdefault(t['group'], (t['value'], p['value']))
    return metric(*zip(*first.values(), strict=True))

  return deduplicated


record = first_of_group(squad)


def by_task(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
  """{'task/metric': value}, and 'mean': over tasks, of their metrics' means.

  SuperGLUE's score (Wang et al., 2019, section 3.3).
  """
  means = [np.mean(list(values.values())) for values in scores.values()]
  return {
    f'{task}/{metric}': float(value)
    for task, values in scores.items()
    for metric, value in values.items()
  } | {'mean': float(np.mean(means))}
