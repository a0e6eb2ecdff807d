# SPDX-License-Identifier: Apache-2.0
"""Evaluation by decoding: the metrics of the tasks of a SeqIO mixture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from upcycle.data import seqio_tasks, text_metrics
from upcycle.data.batches import Batch

# From (model, params, batch) to int [B, T], EOS 1, then 0.
Predict = Callable[[Any, Any, Batch], np.ndarray]


@dataclasses.dataclass(frozen=True)
class SeqioEvaluation:
  """What the tasks of a mixture score, as one of train's `evaluations`.

  Targets, what is made of a decoded text, and metrics are those of
  `seqio.Evaluator`. Tasks without metrics, or without the split, are left out.

  Attributes:
    mixture: the name of a mixture or task, see `seqio_tasks.seqio_mixture`.
    predict: gives tokens int [B, T], 0 after EOS, for a batch that holds
      encoder_input_tokens int32 [B, L]; every process has all rows.
    split: of all tasks.
    task_feature_lengths: tokens of 'inputs' and 'targets'; None means
      `seqio_tasks.LENGTHS`.
    batch_size: rows of every batch; what is missing from the last one is 0.
    num_examples: only the first of each task; None: all.
    module_import: modules to import first, by name.
    vocabulary_path: of the tasks declared here.
  """

  mixture: str
  predict: Predict
  split: str = 'validation'
  task_feature_lengths: Mapping[str, int] | None = None
  batch_size: int = 128
  num_examples: int | None = None
  module_import: Sequence[str] = ()
  vocabulary_path: str | Path | None = None

  def __call__(self, model: Any, params: Any) -> dict[str, float]:
    """Metrics by 'task/metric', and their 'mean' as SuperGLUE has it.

    Returns:
      'mean' is over tasks, of the means of the metrics of each.

    Raises:
      ImportError, FileNotFoundError, ValueError: as `seqio_mixture`, or no task
        of the mixture has metrics on this split.
    """
    predict = functools.partial(self.predict, model, params)
    found, _ = self._evaluator.evaluate(
      compute_metrics=True,
      predict_fn=lambda examples: [*self._predictions(predict, examples)],
    )
    return text_metrics.by_task(found.result())

  @functools.cached_property
  def _evaluator(self):
    """SeqIO's, which holds the examples of all tasks in memory."""
    seqio = seqio_tasks.ready(
      self.mixture, self.split, self.module_import, self.vocabulary_path
    )
    evaluator = seqio.Evaluator(
      self.mixture,
      seqio.EncDecFeatureConverter(pack=False),
      eval_split=self.split,
      sequence_length=self.task_feature_lengths or seqio_tasks.LENGTHS,
      num_examples=self.num_examples,
      async_compute_metrics=False,
    )
    if not evaluator.eval_tasks:
      raise ValueError(
        f'No task of {self.mixture} has metrics on the split {self.split!r}.'
      )
    return evaluator

  def _predictions(
    self, predict: Callable[[Batch], np.ndarray], examples: Any
  ) -> Iterator[tuple[int, list[int]]]:
    """The number of every example and the tokens that are predicted for it."""
    batches = examples.batch(self.batch_size).as_numpy_iterator()
    for numbers, batch in batches:
      inputs = batch['encoder_input_tokens'].astype(np.int32)
      missing = self.batch_size - len(inputs)
      inputs = np.pad(inputs, [(0, missing), (0, 0)])
      tokens = np.asarray(predict({'encoder_input_tokens': inputs}))
      yield from zip(
        numbers.tolist(), tokens[: len(numbers)].tolist(), strict=True
      )
