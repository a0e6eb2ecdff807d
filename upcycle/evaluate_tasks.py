# SPDX-License-Identifier: Apache-2.0
"""Scores of the text-to-text tasks of data/text_tasks.py, by decoding."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from upcycle import decode, infer
from upcycle.data import text, text_metrics, text_tasks, vocabulary


@dataclasses.dataclass(frozen=True)
class Tasks:
  """Scores in percent, as one of train's `evaluations`.

  Attributes:
    vocabulary: the model's, a .model file or a tokenized corpus.
    split: 'validation' or 'test'.
    directory: of the prepared tasks.
    tasks: their names.
    inputs_length: most tokens of an input.
    max_length: most tokens to generate; no label is longer.
    batch_size: examples decoded together.
    num_examples: only the first of each task, without baselines; None: all.
    strategy: of decoding.
  """

  vocabulary: str
  split: str = 'validation'
  directory: str = text_tasks.DIRECTORY
  tasks: Sequence[str] = tuple(text_tasks.TASKS)
  inputs_length: int = 512
  max_length: int = 16
  batch_size: int = 128
  num_examples: int | None = None
  strategy: decode.Sampling | decode.Beam = decode.GREEDY

  def __call__(self, model: Any, params: Any) -> dict[str, float]:
    """'task/metric' of each task, and 'mean': over tasks, of their metrics.

    A prediction that is none of a task's labels is wrong. Beside them is what
    needs no model, of the whole split: 'task/metric/majority',
    'task/metric/naive_bayes'.

    Raises:
      FileNotFoundError, ValueError: a task is not prepared, there is none, or
        the vocabulary has more ids than the model.
    """
    size = model.config.vocab_size
    words = vocabulary.load(self.vocabulary, vocab_size=size)
    baselines = self._baselines()
    scores = {t: self._score(t, model, params, words) for t in self.tasks}
    return text_metrics.by_task(scores) | baselines

  def _baselines(self) -> dict[str, float]:
    manifests = {t: text_tasks.manifest(t, self.directory) for t in self.tasks}
    return {
      f'{task}/{metric}/{baseline}': value
      for task, manifest in manifests.items()
      for baseline, splits in manifest['baselines'].items()
      for metric, value in splits[self.split].items()
      if self.num_examples is None
    }

  def _score(
    self, name: str, model: Any, params: Any, words: vocabulary.Vocabulary
  ) -> dict[str, float]:
    pairs = text.read_pairs(f'{self.directory}/{name}/{self.split}.jsonl')
    pairs = pairs[: self.num_examples]
    found = infer.infer(
      *(model, params, [pair['inputs'] for pair in pairs], words),
      strategy=self.strategy,
      inputs_length=self.inputs_length,
      max_length=self.max_length,
      batch_size=self.batch_size,
    )
    task = text_tasks.TASKS[name]
    targets = [task.labels.index(pair['targets']) for pair in pairs]
    predictions = classes([row['prediction'] for row in found], task.labels)
    return {
      metric: value
      for score in task.metrics
      for metric, value in score(targets, predictions).items()
    }


def classes(texts: Sequence[str], labels: Sequence[str]) -> list[int]:
  """The label that each text is, as an index; -1 if none."""
  index = {label: i for i, label in enumerate(labels)}
  return [index.get(text.strip(), -1) for text in texts]
