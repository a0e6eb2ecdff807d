# SPDX-License-Identifier: Apache-2.0
"""The suite of text-to-text tasks in SeqIO, and evaluation by decoding."""

import io
import itertools
import warnings

import numpy as np
import pytest
from rich.console import Console

with warnings.catch_warnings():  # TensorFlow's own
  warnings.simplefilter('ignore')
  import seqio

from tests import tiny_tasks
from upcycle.data import (
  packages,
  prepare_tasks,
  seqio_evaluation,
  seqio_local,
  seqio_tasks,
  text,
  text_tasks,
  vocabulary,
)

WORDS = 'words.model'
MODULE = 'upcycle.data.seqio_local'
LENGTHS = {'inputs': 24, 'targets': 6}
pytestmark = pytest.mark.filterwarnings('ignore')


def forget():
  """Takes what is declared out of the registry."""
  if seqio_local.MIXTURE in seqio.MixtureRegistry.names():
    tasks = seqio.MixtureRegistry.get(seqio_local.MIXTURE).tasks
    seqio.MixtureRegistry.remove(seqio_local.MIXTURE)
    for task in tasks:
      seqio.TaskRegistry.remove(task.name)


def declare(folder):
  forget()
  seqio_local.register(folder / WORDS, folder / 'tasks')


@pytest.fixture(scope='module')
def suite(tmp_path_factory):
  """The folder of tiny tasks, declared as the suite, and of a vocabulary."""
  folder = tmp_path_factory.mktemp('suite')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_tasks, 'TASKS', tiny_tasks.tasks(folder))
    package = text_tasks.TASKS['late'].package
    packages.write(
      packages.target(package, folder / 'packages'), tiny_tasks.CONTENT
    )
    prepare_tasks.prepare(folder, console=Console(file=io.StringIO()))
    files = text_tasks.files(directory=folder / 'tasks')
    texts = [' '.join(p.values()) for f in files for p in text.read_pairs(f)]
    packages.write(folder / WORDS, vocabulary.train(texts, 100))
    declare(folder)
    yield folder
    forget()


def pairs(suite, task, split):
  return text.read_pairs(suite / 'tasks' / task / f'{split}.jsonl')


def test_batches_hold_the_examples_of_the_files(suite):
  batches = seqio_tasks.seqio_mixture(
    'local_late',
    batch_size=16,
    split='validation',
    task_feature_lengths=LENGTHS,
    module_import=(MODULE,),
    repeat=False,
    shuffle=False,
    shard_index=0,
    shard_count=1,
  )
  words = vocabulary.load(suite / WORDS)
  found = [
    {'inputs': words.decode(i), 'targets': words.decode(t)}
    for batch in batches
    for i, t in zip(
      batch['encoder_input_tokens'], batch['decoder_target_tokens'], strict=True
    )
    if t.any()
  ]
  assert found == pairs(suite, 'late', 'validation')


def test_the_mixture_is_proportional(suite):
  mixture = seqio.MixtureRegistry.get(seqio_local.MIXTURE)
  rates = {t.name: mixture.get_rate(t) for t in mixture.tasks}
  assert rates == {
    f'local_{task}': len(pairs(suite, task, 'train'))
    for task in ('late', 'letter')
  }
  batches = seqio_tasks.seqio_mixture(
    seqio_local.MIXTURE,
    batch_size=32,
    task_feature_lengths=LENGTHS,
    shard_index=0,
    shard_count=1,
  )
  words = vocabulary.load(suite / WORDS)
  rows = [
    words.decode(row)
    for batch in itertools.islice(batches, 20)
    for row in batch['encoder_input_tokens']
  ]
  share = np.mean([row.startswith('late') for row in rows])
  expected = rates['local_late'] / sum(rates.values())
  assert abs(share - expected) < 0.08


@pytest.mark.parametrize('name', ['local_wic', seqio_local.MIXTURE])
def test_tasks_that_are_not_prepared_are_named(suite, tmp_path, name):
  forget()
  try:
    with pytest.MonkeyPatch.context() as patch:
      patch.chdir(tmp_path)
      patch.setattr(seqio_tasks, 'DECLARED', (MODULE,))
      tasks = dict.fromkeys(['wic', 'spam'], text_tasks.TASKS['late'])
      patch.setattr(text_tasks, 'TASKS', tasks)
      with pytest.raises(FileNotFoundError, match=r'data/tasks/(wic|spam)'):
        seqio_tasks.ready(name, 'train')
  finally:
    declare(suite)


def evaluation(suite, predict, **arguments):
  defaults = {'split': 'test', 'task_feature_lengths': LENGTHS}
  return seqio_evaluation.SeqioEvaluation(
    seqio_local.MIXTURE, predict, **(defaults | {'batch_size': 64} | arguments)
  )


def answering(suite, answer):
  """A `predict` that gives answer(the right one) for every row."""
  words = vocabulary.load(suite / WORDS)
  right = {
    pair['inputs']: pair['targets']
    for task in text_tasks.TASKS
    for pair in pairs(suite, task, 'test')
  }
  shapes = []

  def predict(model, params, batch):
    assert (model, params) == ('model', 'params')
    (inputs,) = batch.values()
    shapes.append((inputs.shape, inputs.dtype))
    tokens = np.zeros((len(inputs), 8), int)
    for row, example in zip(tokens, inputs, strict=True):
      if example.any():
        ids = words.encode(answer(right[words.decode(example)]))
        row[: len(ids) + 2] = [*ids, vocabulary.EOS, 7]  # 7: not to be read
    return tokens

  return predict, shapes


def test_right_answers_score_100(suite):
  predict, shapes = answering(suite, lambda target: target)
  found = evaluation(suite, predict)('model', 'params')
  assert found == dict.fromkeys(
    ['local_late/accuracy', 'local_late/f1', 'local_letter/accuracy', 'mean'],
    100.0,
  )
  assert set(shapes) == {((64, LENGTHS['inputs']), np.dtype(np.int32))}


def test_the_mean_is_over_tasks(suite):
  predict, _ = answering(suite, lambda target: 'yes')
  measure = evaluation(suite, predict)
  found = measure('model', 'params')
  expected = {'local_late/accuracy': 50.0, 'local_late/f1': 200 / 3}
  expected |= {'local_letter/accuracy': 0.0, 'mean': (50 + 200 / 3) / 4}
  assert found == pytest.approx(expected)
  assert measure('model', 'params') == found, 'targets are kept'


def test_nonsense_scores_nothing(suite):
  predict, _ = answering(suite, lambda target: 'abc')
  found = evaluation(suite, predict, num_examples=5)('model', 'params')
  assert set(found.values()) == {0.0}


def test_a_mixture_without_metrics_is_refused(suite):
  seqio.TaskRegistry.add(
    'tiny_unmeasured',
    seqio_local.Source('late', suite / 'tasks'),
    preprocessors=[seqio.preprocessors.tokenize],
    output_features=seqio.TaskRegistry.get('local_late').output_features,
  )
  measure = seqio_evaluation.SeqioEvaluation('tiny_unmeasured', print, 'test')
  with pytest.raises(ValueError, match='unmeasured has metrics on'):
    measure(None, None)
