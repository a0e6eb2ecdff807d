# SPDX-License-Identifier: Apache-2.0
"""SeqIO mixtures: a local task, C4's span corruption, SuperGLUE's forms."""

import functools
import itertools
import json
import sys
import textwrap
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():  # TensorFlow's own
  warnings.simplefilter('ignore')
  import seqio
  import tensorflow as tf
  import tensorflow_datasets as tfds

from tests import tiny_text
from upcycle.data import batches, denoising, seqio_t5, seqio_tasks, vocabulary

# Imported after TensorFlow, so that its warnings stay silent.
from upcycle.data import seqio_superglue as superglue

LENGTHS = {'inputs': 48, 'targets': 24}
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return tiny_text.corpus(tmp_path_factory.mktemp('data') / 'tiny')


TASKS = """
  import os
  import seqio
  import tensorflow as tf

  LETTERS = str.maketrans('0123456789abcdef', 'abcdefghijklmnop')

  def rows(split, shuffle_files, seed=None):
    count = 50 if split == 'train' else 11
    names = [f'{i:02x}'.translate(LETTERS) for i in range(count)]
    text = [f'abc {name} def' for name in names]
    answer = [name[0] for name in names]
    data = {'inputs': text, 'targets': answer}
    return tf.data.Dataset.from_tensor_slices(data)

  words = seqio.SentencePieceVocabulary(
    os.environ['TINY_VOCABULARY'], extra_ids=100
  )
  for name in ('tiny_one', 'tiny_two'):
    seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(rows, splits=['train', 'validation']),
      preprocessors=[
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos_after_trim,
      ],
      output_features={
        'inputs': seqio.Feature(words), 'targets': seqio.Feature(words),
      },
    )
  seqio.MixtureRegistry.add('tiny_both', [('tiny_one', 3), ('tiny_two', 1)])
"""


@pytest.fixture(scope='module', autouse=True)
def module(corpus, tmp_path_factory):
  """A user's own module of tasks, importable by the name it returns."""
  folder = tmp_path_factory.mktemp('modules')
  name = 'tiny_seqio_tasks'
  (folder / f'{name}.py').write_text(textwrap.dedent(TASKS))
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    patch.setenv('TINY_VOCABULARY', f'{corpus}/vocabulary.model')
    with pytest.raises(FileNotFoundError, match='prepare_data'):
      seqio_t5.register('nowhere.model')
    seqio_t5.register(f'{corpus}/vocabulary.model')
    yield name
  sys.modules.pop(name, None)


def make(mixture='tiny_one', **arguments):
  defaults = {
    'batch_size': 4,
    'task_feature_lengths': LENGTHS,
    'module_import': ('tiny_seqio_tasks',),
    'shard_index': 0,
    'shard_count': 1,
  }
  return seqio_tasks.seqio_mixture(mixture, **(defaults | arguments))


def take(dataset, count=None):
  return list(itertools.islice(iter(dataset), count))


def same(xs, ys):
  assert len(xs) == len(ys)
  for x, y in zip(xs, ys, strict=True):
    assert x.keys() == y.keys()
    for name in x:
      np.testing.assert_array_equal(x[name], y[name], name)


def texts(found, words):
  """The inputs of all rows that have any, decoded."""
  return [
    words.decode(row)
    for batch in found
    for row in batch['encoder_input_tokens']
    if row.any()
  ]


def test_the_two_vocabularies_agree(corpus):
  theirs = seqio.SentencePieceVocabulary(f'{corpus}/vocabulary.model', 100)
  ours = vocabulary.load(corpus)
  text = tiny_text.documents(1)[0] + ' <extra_id_0> abc <extra_id_99>'
  assert theirs.vocab_size == ours.size
  assert theirs.encode(text) == ours.encode(text)
  assert theirs.encode('<extra_id_5>')[-1] == ours.sentinel(5)


@pytest.mark.parametrize('packed', [False, True])
def test_batches_are_those_of_the_local_pipeline(packed):
  batch = take(make(packed=packed), 1)[0]
  arrays = {
    'inputs': 'encoder_input_tokens',
    'targets': 'decoder_target_tokens',
  }
  packing = {
    f'{name}_{what}': batch[f'{side}_{what}']
    for name, side in (('inputs', 'encoder'), ('targets', 'decoder'))
    for what in ('segment_ids', 'positions')
    if packed
  }
  ours = batches.model_batch(
    **{name: batch[key] for name, key in arrays.items()}, **packing
  )
  same([batch], [ours])
  assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
    k: (x.shape, x.dtype) for k, x in ours.items()
  }
  if packed:
    assert batch['encoder_segment_ids'].max() > 1


@pytest.mark.parametrize('mixture', ['tiny_one', 'tiny_both'])
@pytest.mark.parametrize('steps', [0, 20])
def test_a_resumed_stream_goes_on_exactly(mixture, steps):
  whole = take(make(mixture, seed=5), steps + 4)
  killed = iter(make(mixture, seed=5))
  for _ in range(steps):
    next(killed)
  state = json.loads(json.dumps(killed.get_state()))
  resumed = iter(make(mixture, seed=5))
  next(resumed)
  resumed.set_state(state)
  same(take(resumed, 4), whole[steps:])


def test_seeds_differ():
  one, two = (take(make(seed=s), 1)[0] for s in (1, 2))
  assert (one['encoder_input_tokens'] != two['encoder_input_tokens']).any()


def test_processes_read_different_examples(corpus):
  words = vocabulary.load(corpus)
  parts = [
    set(texts(take(make(shard_index=i, shard_count=2), 150), words))
    for i in range(2)
  ]
  assert not parts[0] & parts[1]
  assert len(parts[0] | parts[1]) == 50


def test_evaluation_is_complete_on_any_number_of_processes(corpus):
  options = {'split': 'validation', 'repeat': False, 'shuffle': False}
  whole = take(make(**options))
  assert len(whole) == 3  # of 11 rows
  words = vocabulary.load(corpus)
  expected = [f'abc a{letter} def' for letter in 'abcdefghijk']
  assert texts(whole, words) == expected
  assert whole[-1]['decoder_loss_weights'][3].sum() == 0
  for i in range(2):
    part = take(make(shard_index=i, shard_count=2, **options))
    same(part, [{k: x[i::2] for k, x in batch.items()} for batch in whole])


def test_an_unknown_mixture_lists_what_there_is():
  with pytest.raises(ValueError, match=r"'webtext'.*c4_v220.*local_wic.*tiny_"):
    make('webtext')


def test_an_unknown_split_lists_what_there_is():
  with pytest.raises(ValueError, match=r"'dev'; it has \['train', 'valid"):
    make(split='dev')


@pytest.mark.parametrize(
  ('mixture', 'names'),
  [
    ('c4_v220_span_corruption', ['c4/en:2.2.0']),
    ('super_glue_wsc_v102_simple_train', ['super_glue/wsc.fixed:1.0.2']),
    (
      'super_glue_v102_proportional',
      ['definite_pronoun_resolution:1.1.0', 'super_glue/boolq:1.0.2'],
    ),
  ],
)
def test_a_data_set_that_is_not_there_is_named(mixture, names):
  with pytest.raises(FileNotFoundError, match='not prepared under') as error:
    make(mixture)
  for name in names:
    assert name in str(error.value)
  assert 'tfds build' in str(error.value)


def test_without_tensorflow_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'seqio', None)
  with pytest.raises(ImportError, match=r"pip install 'upcycle\[tf\]'"):
    make()


def corrupted(corpus, lengths, documents=60):
  """(inputs, targets) of our C4 preprocessor on tiny documents, in order."""
  words = seqio.SentencePieceVocabulary(f'{corpus}/vocabulary.model', 100)
  features = dict.fromkeys(
    ('inputs', 'targets'), seqio.Feature(words, add_eos=True)
  )
  ids = [words.encode(t) for t in tiny_text.documents(documents)]
  source = tf.data.Dataset.from_generator(
    lambda: ({'targets': x} for x in ids),
    output_signature={'targets': tf.TensorSpec([None], tf.int32)},
  )
  with seqio.utils.map_seed_manager(3):
    found = seqio_t5.span_corruption(source, lengths, features)
  found = seqio.preprocessors.append_eos_after_trim(
    found, output_features=features, sequence_length=lengths
  )
  return list(found.as_numpy_iterator()), np.concatenate(ids)


@pytest.mark.parametrize('inputs', [64, 512])
def test_c4_examples_are_those_of_t5(corpus, inputs):
  need = denoising.lengths(inputs)
  lengths = {'inputs': need.inputs, 'targets': need.targets}
  found, ids = corrupted(corpus, lengths)
  for example in found[:-1]:
    assert len(example['inputs']) == need.inputs
    assert len(example['targets']) == need.targets
  flat = [denoising.reassemble(**x, pieces=tiny_text.PIECES) for x in found]
  np.testing.assert_array_equal(np.concatenate(flat), ids)


def test_c4_needs_room_for_its_targets(corpus):
  with pytest.raises(ValueError, match='need targets of 114, not 62'):
    corrupted(corpus, {'inputs': 512, 'targets': 62})


def store(folder, name, config, version, columns):
  """Writes a data set as TFDS would have prepared it."""
  data = tf.data.Dataset.from_tensor_slices(columns)
  scalar = {'label': tf.int64, 'idx': tf.int32}
  tfds.dataset_builders.store_as_tfds_dataset(
    name=name,
    config=config,
    version=version,
    data_dir=folder,
    split_datasets={'train': data, 'validation': data},
    features=tfds.features.FeaturesDict(
      {k: scalar.get(k, tfds.features.Text()) for k in columns}
    ),
  )


def test_prepared_data_sets_are_found(corpus, tmp_path, monkeypatch):
  folder = str(tmp_path)
  store(folder, 'c4', 'en', '2.2.0', {'text': tiny_text.documents(40)})
  rows = {'question': ['abc'] * 9, 'passage': ['def'] * 9}
  rows |= {'label': [0, 1, 1] * 3, 'idx': list(range(9))}
  store(folder, 'super_glue', 'boolq', '1.0.2', rows)
  seqio.set_tfds_data_dir_override(folder)
  try:
    lengths = {'inputs': 64, 'targets': 14}
    c4 = make('c4_v220_span_corruption', task_feature_lengths=lengths)
    boolq = make('super_glue_boolq_v102', split='validation', repeat=False)
    examples, answers = take(c4, 5), take(boolq)
  finally:
    seqio.set_tfds_data_dir_override(None)
  assert all((x['decoder_loss_weights'] == 1).all() for x in examples)
  assert all(x['encoder_input_tokens'].all() for x in examples)
  words = vocabulary.load(corpus)
  assert '<extra_id_2>' in words.decode(examples[0]['decoder_target_tokens'][0])
  assert len(answers) == 3


def dataset(*rows):
  """Rows may hold lists of different lengths."""
  all_rows = [tf.data.Dataset.from_tensors(row) for row in rows]
  return functools.reduce(tf.data.Dataset.concatenate, all_rows)


def strings(found):
  """(inputs, targets) of every example."""
  return [
    tuple(tf.compat.as_text(row[k]) for k in ('inputs', 'targets'))
    for row in found.as_numpy_iterator()
  ]


CLASSIFICATION = {
  'boolq': ('boolq passage: P question: Q', 'False'),
  'cb': ('cb hypothesis: H premise: M', 'entailment'),
  'copa': ('copa choice1: C choice2: D premise: M question: Q', 'choice1'),
  'multirc': ('multirc question: Q answer: A paragraph: R S T', 'False'),
  'rte': ('rte hypothesis: H premise: M', 'entailment'),
  'wic': ('wic sentence1: U sentence2: V word: W', 'False'),
  'axb': ('rte hypothesis: V premise: U', 'entailment'),
  'axg': ('rte hypothesis: H premise: M', 'entailment'),
}


@pytest.mark.parametrize('name', CLASSIFICATION)
def test_classification_in_the_form_of_t5(name):
  inputs, first = CLASSIFICATION[name]
  fields = {'passage': 'P', 'question': 'Q', 'hypothesis': 'H', 'premise': 'M'}
  fields |= {'choice1': 'C', 'choice2': 'D', 'answer': 'A', 'word': 'W'}
  fields |= {'paragraph': 'R<br>S <b>T</b>', 'sentence1': 'U', 'sentence2': 'V'}
  rows = [{**fields, 'label': np.int64(i), 'idx': np.int32(7)} for i in (0, -1)]
  task = superglue.CLASSIFICATION[name]
  found = strings(superglue.classification(dataset(*rows), task))
  assert found == [(inputs, first), (inputs, '<unk>')]


def test_record_has_an_example_for_each_answer():
  row = {
    'passage': 'One.\n@highlight\nTwo\n@highlight\nThree',
    'query': 'A @placeholder is',
    'entities': ['x', 'y'],
    'idx': {'passage': np.int32(1), 'query': np.int32(2)},
  }
  none = tf.constant([], tf.string)
  found = superglue.record(
    dataset({**row, 'answers': ['x', 'y']}, {**row, 'answers': none})
  )
  text = (
    'record query: A @placeholder is entities: x, y passage: One. Two. Three'
  )
  assert strings(found) == [(text, 'x'), (text, 'y'), (text, '<unk>')]
  example = next(found.as_numpy_iterator())
  assert superglue.record_answers('x', example, is_target=True) == {
    'value': ['x', 'y'],
    'group': (1, 2),
  }


def test_pronouns_are_marked():
  wsc = {
    'text': 'Bob asked Tom if he can pay.',
    'span1_text': 'Tom',
    'span2_text': 'he',
    'span2_index': 4,
    'idx': 0,
  }
  rows = dataset({**wsc, 'label': 0}, {**wsc, 'label': 1})
  expected = ('wsc: Bob asked Tom if *he* can pay.', 'Tom')
  assert strings(superglue.wsc(rows)) == [expected] * 2
  assert strings(superglue.wsc(rows, correct_referent_only=True)) == [expected]
  dpr = {
    'sentence': 'Bob asked Tom if he can, and he did.',
    'pronoun': 'he',
    'candidates': ['Bob', 'Tom'],
    'label': 1,
  }
  expected = ('wsc: Bob asked Tom if *he* can, and he did.', 'Tom')
  assert strings(superglue.definite_pronoun(dataset(dpr))) == [expected]


@pytest.mark.parametrize(
  ('prediction', 'referent', 'expected'),
  [
    ('Bob', 'Bob', 1),
    ('the bunny', 'fuzzy bunny', 1),
    ('rabbit', 'fuzzy bunny', 0),
    ('Bob', "Bob's hat", 0),
    ('the', 'Bob', -1),
  ],
)
def test_predicted_referents(prediction, referent, expected):
  example = {'targets_pretokenized': referent.encode(), 'label': 1}
  assert superglue.wsc_label(prediction, example) == expected
  assert superglue.wsc_label('x', example, is_target=True) == 1


def test_labels_of_predictions():
  label = superglue.postprocessor('cb')
  assert [label(x, example={}) for x in ('neutral', 'maybe')] == [2, -1]
  multirc = superglue.postprocessor('multirc')
  assert multirc('True', {}) == {'value': 1}
  target = multirc('False', {'idx/question': np.int32(4)}, is_target=True)
  assert target == {'value': 0, 'group': 4}


def test_the_mixture_is_proportional():
  mixture = seqio.MixtureRegistry.get('super_glue_v102_proportional')
  rates = {t.name: mixture.get_rate(t) for t in mixture.tasks}
  assert rates == superglue.RATES
  assert sum(rates.values()) == 185_673
