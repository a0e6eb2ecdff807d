# SPDX-License-Identifier: Apache-2.0
"""SuperGLUE as text to text, as in T5 (Raffel et al., 2020, appendix D).

Needs the extra `tf`. Inputs are a prefix and 'name: value' for each field; the
target is the label's name. ReCoRD, WSC and DPR have forms of their own.
"""

import functools
import re
from typing import Any, NamedTuple

import tensorflow as tf

from upcycle.data import text_metrics

Row = dict[str, Any]


class ClassificationTask(NamedTuple):
  """A task whose target is the name of its label."""

  prefix: str
  fields: tuple[str, ...]  # 'name' or 'name=key of the data set'
  labels: tuple[str, ...]
  metrics: tuple[text_metrics.Metric, ...] = (text_metrics.accuracy,)


BOOLEAN = ('False', 'True')
ENTAILMENT = ('entailment', 'not_entailment')
CLASSIFICATION = {
  'boolq': ClassificationTask('boolq', ('passage', 'question'), BOOLEAN),
  'cb': ClassificationTask(
    'cb',
    ('hypothesis', 'premise'),
    ('entailment', 'contradiction', 'neutral'),
    (text_metrics.mean_3class_f1, text_metrics.accuracy),
  ),
  'copa': ClassificationTask(
    'copa',
    ('choice1', 'choice2', 'premise', 'question'),
    ('choice1', 'choice2'),
  ),
  'multirc': ClassificationTask(
    'multirc',
    ('question', 'answer', 'paragraph'),
    BOOLEAN,
    (text_metrics.grouped_f1, text_metrics.grouped_exact_match),
  ),
  'rte': ClassificationTask('rte', ('hypothesis', 'premise'), ENTAILMENT),
  'wic': ClassificationTask('wic', ('sentence1', 'sentence2', 'word'), BOOLEAN),
  # Diagnostics without public labels, asked as RTE.
  'axb': ClassificationTask(
    'rte', ('hypothesis=sentence2', 'premise=sentence1'), ENTAILMENT, ()
  ),
  'axg': ClassificationTask('rte', ('hypothesis', 'premise'), ENTAILMENT, ()),
}

# Examples in each training set: the rates of the proportional mixture.
RATES = {
  'dpr_v001_simple': 1_322,
  'super_glue_wsc_v102_simple_train': 259,
  'super_glue_wsc_v102_simple_eval': 0,
  'super_glue_boolq_v102': 9_427,
  'super_glue_cb_v102': 250,
  'super_glue_copa_v102': 400,
  'super_glue_multirc_v102': 27_243,
  'super_glue_record_v102': 138_854,
  'super_glue_rte_v102': 2_490,
  'super_glue_wic_v102': 5_428,
  'super_glue_axb_v102': 0,
  'super_glue_axg_v102': 0,
}


def _indices(row: Row) -> Row:
  """What tells which question an example belongs to, for the metrics."""
  index = row['idx']
  if isinstance(index, dict):
    return {f'idx/{name}': value for name, value in index.items()}
  return {'idx': index}


def classification(
  ds: tf.data.Dataset, task: ClassificationTask
) -> tf.data.Dataset:
  """'rte hypothesis: ... premise: ...' -> 'entailment'; unlabelled '<unk>'."""

  def convert(row: Row) -> Row:
    parts = [task.prefix]
    for field in task.fields:
      name, _, key = field.partition('=')
      parts += [f'{name}:', row[key or name]]
    text = tf.strings.join(parts, ' ')
    if task.prefix == 'multirc':  # its paragraphs are HTML
      text = tf.strings.regex_replace(text, '<br>', ' ')
      text = tf.strings.regex_replace(text, '</?b>', '')
    # Label -1, of the test sets, is the name before the first.
    target = tf.gather(['<unk>', *task.labels], row['label'] + 1)
    return {'inputs': text, 'targets': target, **_indices(row)}

  return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)


def record(ds: tf.data.Dataset) -> tf.data.Dataset:
  """ReCoRD: one example for each accepted answer; all are kept for metrics."""

  def text(row: Row) -> tf.Tensor:
    passage = tf.strings.regex_replace(
      row['passage'], r'(\.|\?|\!|\"|\')\n@highlight\n', r'\1 '
    )
    passage = tf.strings.regex_replace(passage, r'\n@highlight\n', '. ')
    entities = tf.strings.reduce_join(row['entities'], separator=', ')
    names = ['record query:', 'entities:', 'passage:']
    values = [row['query'], entities, passage]
    return tf.strings.join(
      [x for pair in zip(names, values, strict=True) for x in pair], ' '
    )

  def convert(row: Row) -> tf.data.Dataset:
    answers = row['answers']
    targets = tf.cond(
      tf.size(answers) > 0, lambda: answers, lambda: tf.constant(['<unk>'])
    )
    same = {'inputs': text(row), 'answers': answers, **_indices(row)}
    return tf.data.Dataset.from_tensor_slices(targets).map(
      lambda target: {'targets': target, **same}
    )

  return ds.flat_map(convert)


# Two rows of WSC whose index of the pronoun does not count words: the text
# before and after it, as T5 corrects them.
WSC_ODD = {
  'The boy continued to whip the pony , and eventually the pony threw him '
  'over. John laughed out quite loud. "Good for him," he said. ': (
    'The boy continued to whip the pony , and eventually the pony threw him '
    'over. John laughed out quite loud. "Good for *him* ," he said.'
  ),
  'When they had eventually calmed down a bit , and had gotten home, Mr. '
  'Farley put the magic pebble in an iron safe . Some day they might want to '
  'use it , but really for now, what more could they wish for?': (
    'When they had eventually calmed down a bit , and had gotten home, Mr. '
    'Farley put the magic pebble in an iron safe . Some day they might want to '
    'use *it* , but really for now, what more could they wish for?'
  ),
}


def wsc(
  ds: tf.data.Dataset, correct_referent_only: bool = False
) -> tf.data.Dataset:
  """'wsc: Bob asked Tom if *he* can lend money.' -> 'Tom'.

  For training only rows whose referent is right are of use.
  """

  def convert(row: Row) -> Row:
    words = tf.strings.split([row['text']], ' ').values
    at = row['span2_index']
    parts = [words[:at], ['*' + row['span2_text'] + '*'], words[at + 1 :]]
    text = tf.strings.reduce_join(tf.concat(parts, 0), separator=' ')
    for odd, right in WSC_ODD.items():
      text = tf.where(row['text'] == odd, right, text)
    return {
      'inputs': tf.strings.join(['wsc:', text], ' '),
      'targets': row['span1_text'],
      'label': row['label'],
      'idx': row['idx'],
    }

  if correct_referent_only:
    ds = ds.filter(lambda row: tf.cast(row['label'], tf.bool))
  return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)


def definite_pronoun(ds: tf.data.Dataset) -> tf.data.Dataset:
  """DPR in the form of WSC; the first of several equal pronouns is meant."""

  def convert(row: Row) -> Row:
    pronoun = tf.strings.join([' (', row['pronoun'], r')( |\.|,)'])
    text = tf.strings.regex_replace(
      row['sentence'], pronoun, r' *\1*\2', replace_global=False
    )
    return {
      'inputs': tf.strings.join(['wsc:', text], ' '),
      'targets': row['candidates'][row['label']],
    }

  return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)


def label_of(
  text: str, example: Row | None = None, is_target: bool = False, *, labels
) -> int:
  """The index of a label's name, -1 if the text is none."""
  del example, is_target
  return labels.index(text) if text in labels else -1


def multirc_label(text: str, example: Row, is_target: bool = False) -> Row:
  """The label and, for targets, the question it belongs to."""
  value = {'value': label_of(text, labels=BOOLEAN)}
  return value | ({'group': int(example['idx/question'])} if is_target else {})


def record_answers(text: str, example: Row, is_target: bool = False) -> Row:
  """The prediction, or all answers and the query they belong to."""
  if not is_target:
    return {'value': text}
  return {
    'value': [tf.compat.as_text(a) for a in example['answers']],
    'group': (int(example['idx/passage']), int(example['idx/query'])),
  }


DETERMINERS = frozenset(
  re.findall(
    r'\w+',
    'a an few her his each every many much my our some that the their these '
    'this those which whose your',
  )
)


def wsc_label(text: str, example: Row, is_target: bool = False) -> int:
  """Whether the predicted referent is the one in question (1, 0; -1 empty)."""
  if is_target:
    return int(example['label'])

  def words(text):
    text = tf.compat.as_text(text).strip().lower()
    return {w for w in text.split(' ') if w not in DETERMINERS}

  referent = tf.compat.as_text(example['targets_pretokenized'])
  found, wanted = words(text), words(referent)
  if not ''.join(found):
    return -1
  # "Bob" is not "Bob's hat", but "bunny" is "fuzzy bunny".
  if any("'" in w for w in found) != any("'" in w for w in wanted):
    return 0
  return int(found <= wanted or wanted <= found)


def postprocessor(name: str):
  """What turns a prediction of a classification task into a label."""
  if name == 'multirc':
    return multirc_label
  return functools.partial(label_of, labels=CLASSIFICATION[name].labels)
