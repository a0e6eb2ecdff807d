# SPDX-License-Identifier: Apache-2.0
"""The suite of `text_tasks` as SeqIO tasks 'local_NAME' and a mixture of them.

Needs the extra `tf`. `register` only declares: files are looked for when a task
is used.
"""

import functools
from pathlib import Path

import seqio
import tensorflow as tf

from upcycle.data import (
  seqio_superglue,
  seqio_t5,
  text,
  text_splits,
  text_tasks,
)

MIXTURE = 'local_suite_proportional'
# Examples of a task that count in the mixture, K of Raffel et al., 2020, 3.5.2.
MAXIMUM = 2**19


class Source(seqio.FunctionDataSource):
  """The files of a task that `scripts/prepare_data.py tasks` made, or will."""

  def __init__(self, name: str, directory: str | Path):
    self.name, self.directory = name, Path(directory)
    super().__init__(self._read, splits=tuple(text_splits.CAPS))

  def _read(
    self, split: str, shuffle_files: bool, seed: int | None = None
  ) -> tf.data.Dataset:
    pairs = text.read_pairs(self.directory / self.name / f'{split}.jsonl')
    columns = {k: [pair[k] for pair in pairs] for k in ('inputs', 'targets')}
    ds = tf.data.Dataset.from_tensor_slices(columns)
    return ds.shuffle(len(pairs), seed) if shuffle_files else ds

  def num_input_examples(self, split: str) -> int:
    """As the manifest says, or its error where there is none."""
    manifest = text_tasks.manifest(self.name, self.directory)
    return manifest['splits'][split]['examples']


def register(
  vocabulary_path: str | Path | None = None,
  directory: str | Path = text_tasks.DIRECTORY,
) -> None:
  """Declares all tasks and the mixture, in proportion to training examples.

  What is declared stays: a second call does nothing.

  Args:
    vocabulary_path: see `seqio_t5.output_features`.
    directory: where the tasks are, or will be.

  Raises:
    FileNotFoundError: there is no such vocabulary.
  """
  if MIXTURE in seqio.MixtureRegistry.names():
    return
  features = seqio_t5.output_features(vocabulary_path)
  for name, task in text_tasks.TASKS.items():
    seqio.TaskRegistry.add(
      f'local_{name}',
      source=Source(name, directory),
      preprocessors=[
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        seqio.preprocessors.append_eos_after_trim,
      ],
      output_features=features,
      postprocess_fn=functools.partial(
        seqio_superglue.label_of, labels=task.labels
      ),
      metric_fns=list(task.metrics),
    )
  seqio.MixtureRegistry.add(
    MIXTURE,
    [f'local_{name}' for name in text_tasks.TASKS],
    default_rate=functools.partial(
      seqio.mixing_rate_num_examples, maximum=MAXIMUM
    ),
  )
