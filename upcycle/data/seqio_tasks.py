# SPDX-License-Identifier: Apache-2.0
"""Batches of any registered SeqIO task or mixture, by name.

TensorFlow and SeqIO are the extra `tf` and are imported when first used.
Batches are those of `batches`, and so is the protocol of the iterators.
"""

from collections.abc import Callable, Sequence
import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from upcycle.data.batches import Batch, shard

LENGTHS = {'inputs': 512, 'targets': 114}
# Modules with a `register(vocabulary_path)` that declares tasks, once.
DECLARED = ('upcycle.data.seqio_t5', 'upcycle.data.seqio_local')


class SeqioBatches:
  """An iterable over batches of a tf.data.Dataset of examples."""

  def __init__(self, examples: Callable[[], Any], rows: int, mine: slice):
    """`examples` makes the dataset anew: a tf.data.Dataset that is iterated a
    second time shuffles in another order.
    """
    self.examples, self.rows, self.mine = examples, rows, mine

  def __iter__(self) -> 'SeqioIterator':
    return SeqioIterator(self)


class SeqioIterator:
  """Counts batches; to go on, it skips as many.

  The seed fixes the stream, so the count is all there is to save: exact, tiny
  and good for any version of TensorFlow, where a checkpoint of the tf.data
  iterator holds its shuffle buffers, and none is possible with numpy inside.
  The price is that skipped batches are computed: about a million tokens a
  second on two cores for C4, more where there are more.
  """

  def __init__(self, batches: SeqioBatches):
    self.batches = batches
    self.set_state({'batches': 0})

  def __iter__(self) -> 'SeqioIterator':
    return self

  def __next__(self) -> Batch:
    if self.arrays is None:
      dataset = self.batches.examples().batch(self.batches.rows)
      dataset = dataset.skip(self.count).prefetch(2)
      self.arrays = dataset.as_numpy_iterator()
    batch = next(self.arrays)
    self.count += 1
    return {name: self._rows(name, array) for name, array in batch.items()}

  def _rows(self, name: str, array: np.ndarray) -> np.ndarray:
    missing = self.batches.rows - len(array)
    if missing:  # the last batch
      array = np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
    kind = np.float32 if name == 'decoder_loss_weights' else np.int32
    return array[self.batches.mine].astype(kind)

  def get_state(self) -> dict[str, Any]:
    return {'batches': self.count}

  def set_state(self, state: dict[str, Any]) -> None:
    self.count, self.arrays = state['batches'], None


def seqio_mixture(
  mixture: str,
  *,
  batch_size: int,
  split: str = 'train',
  task_feature_lengths: dict[str, int] | None = None,
  packed: bool = False,
  seed: int = 0,
  repeat: bool = True,
  shuffle: bool = True,
  use_cached: bool = False,
  module_import: Sequence[str] = (),
  vocabulary_path: str | Path | None = None,
  shard_index: int | None = None,
  shard_count: int | None = None,
) -> SeqioBatches:
  """Batches of a registered SeqIO task or mixture.

  Args:
    mixture: its name, e.g. 'c4_v220_span_corruption' (`seqio_t5`) or
      'local_suite_proportional' (`seqio_local`), or one that a module of
      `module_import` registers.
    batch_size: rows over all processes.
    split: 'train', 'validation', ...
    task_feature_lengths: tokens of 'inputs' and 'targets'; None means LENGTHS.
    packed: several examples share a row as segments.
    seed: of order and of random preprocessing.
    repeat: whether to go on without end; if not, the last batch is filled up
      with rows of weight 0, and every process reads the whole split.
    shuffle: whether to shuffle.
    use_cached: take what SeqIO's own caching wrote.
    module_import: modules to import first, by name.
    vocabulary_path: of the tasks declared here, see `output_features` of
      `seqio_t5`.
    shard_index: this process; None asks JAX.
    shard_count: processes; None asks JAX.

  Raises:
    ImportError: the extra `tf` is not installed.
    ValueError: no such mixture or split; those that exist are listed.
    FileNotFoundError: data sets that are not prepared, all of them.
  """
  index, count, rows = shard(batch_size, shard_index, shard_count)
  seqio = ready(mixture, split, module_import, vocabulary_path)
  examples = functools.partial(
    seqio.get_dataset,
    mixture,
    task_feature_lengths or LENGTHS,
    feature_converter=seqio.EncDecFeatureConverter(pack=packed),
    dataset_split=split,
    use_cached=use_cached,
    shuffle=shuffle,
    num_epochs=None if repeat else 1,
    shard_info=seqio.ShardInfo(index, count) if repeat else None,
    seed=seed,
    verbose=False,
  )
  if repeat:
    return SeqioBatches(examples, rows, slice(None))
  return SeqioBatches(examples, batch_size, slice(index, None, count))


def ready(
  mixture: str,
  split: str,
  module_import: Sequence[str] = (),
  vocabulary_path: str | Path | None = None,
) -> Any:
  """The module seqio, once it knows a mixture whose data are there.

  Arguments and errors are those of `seqio_mixture`.
  """
  seqio = _seqio()
  for module in module_import:
    importlib.import_module(module)
  if mixture not in _known(seqio):
    for module in DECLARED:
      importlib.import_module(module).register(vocabulary_path)
  if mixture not in _known(seqio):
    raise ValueError(
      f'SeqIO knows no task or mixture {mixture!r}; it knows '
      f'{", ".join(sorted(_known(seqio)))}. module_import names modules with '
      'others.'
    )
  _check(seqio, mixture, split)
  return seqio


def _seqio():
  """The module, with TensorFlow kept off the accelerators that JAX uses."""
  try:
    import seqio
    import tensorflow as tf
  except ImportError as error:
    raise ImportError(
      'SeqIO mixtures need TensorFlow and SeqIO, the extra `tf`: '
      "pip install 'upcycle[tf]'"
    ) from error
  tf.config.set_visible_devices([], 'GPU')
  return seqio


def _known(seqio) -> set[str]:
  return {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}


def _check(seqio, mixture: str, split: str) -> None:
  """Raises one error that says what is missing, before anything is read."""
  tasks = seqio.get_subtasks(seqio.get_mixture_or_task(mixture))
  missing = {
    task.source.tfds_dataset.name: task.source.tfds_dataset.data_dir
    for task in tasks
    if isinstance(task.source, seqio.TfdsDataSource)
    and not task.source.tfds_dataset.info.splits
  }
  if missing:
    import tensorflow_datasets as tfds

    folders = {d or tfds.core.constants.DATA_DIR for d in missing.values()}
    raise FileNotFoundError(
      f'{mixture} needs data sets that are not prepared under '
      f'{", ".join(map(str, folders))}: {", ".join(sorted(missing))}. Run '
      '`tfds build NAME` where there is a network, or set TFDS_DATA_DIR.'
    )
  splits = {name for task in tasks for name in task.splits}
  if split not in splits:
    raise ValueError(
      f'{mixture} has no split {split!r}; it has {sorted(splits)}.'
    )
  for task in tasks:
    if split in task.splits:
      task.num_input_examples(split)  # of ours: says what is not prepared
