# SPDX-License-Identifier: Apache-2.0
"""What a text-to-text task needs no model for: two baselines of any classes."""

from collections.abc import Callable, Sequence
import re

from jaxtyping import Int
import numpy as np

from upcycle.data.text_metrics import Metric
from upcycle.data.text_splits import Splits

Labels = Int[np.ndarray, ' N']
Classifier = Callable[[Sequence[str]], Labels]
# By baseline, split and metric, in percent.
Scores = dict[str, dict[str, dict[str, float]]]


def majority(texts: Sequence[str], labels: Labels, classes: int) -> Classifier:
  """Always says the class that is most frequent in training."""
  del texts
  most = np.bincount(labels, minlength=classes).argmax()
  return lambda texts: np.full(len(texts), most)


def naive_bayes(
  texts: Sequence[str], labels: Labels, classes: int
) -> Classifier:
  """Multinomial naive Bayes over words, smoothed by one of each.

  Words that are not in `texts` do not count (McCallum and Nigam, 1998).
  """
  split = [_words(text) for text in texts]
  flat = [word for row in split for word in row]
  words = {word: i for i, word in enumerate(dict.fromkeys(flat))}
  counts = np.ones((len(words), classes))
  of_words = np.repeat(labels, [len(row) for row in split])
  np.add.at(counts, ([words[word] for word in flat], of_words), 1)
  likelihood = np.log(counts / counts.sum(0))
  prior = np.log(np.bincount(labels, minlength=classes) + 1)

  def best(text: str) -> int:
    known = [words[w] for w in _words(text) if w in words]
    return int((prior + likelihood[known].sum(0)).argmax())

  return lambda texts: np.array([best(text) for text in texts], int)


def _words(text: str) -> list[str]:
  return re.findall(r'\w+', text.lower())


BASELINES = {'majority': majority, 'naive_bayes': naive_bayes}


def scores(
  splits: Splits, labels: Sequence[str], metrics: Sequence[Metric]
) -> Scores:
  """Each baseline, fitted on 'train', by the metrics of the task.

  Args:
    splits: 'train' and those to score.
    labels: names of the classes.
    metrics: of lists of classes, as indices.
  """
  texts = {s: [e.inputs for e in found] for s, found in splits.items()}
  answers = {
    s: [labels.index(e.targets) for e in found] for s, found in splits.items()
  }
  result: Scores = {}
  for name, fit in BASELINES.items():
    classify = fit(texts['train'], np.array(answers['train']), len(labels))
    result[name] = {
      s: _measure(metrics, answers[s], classify(texts[s]).tolist())
      for s in splits
      if s != 'train'
    }
  return result


def _measure(metrics, targets, predictions) -> dict[str, float]:
  measured = [metric(targets, predictions) for metric in metrics]
  return {name: x for values in measured for name, x in values.items()}
