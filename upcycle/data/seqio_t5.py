# SPDX-License-Identifier: Apache-2.0
"""The SeqIO tasks of the paper, by T5's names: C4 span corruption, SuperGLUE.

Needs the extra `tf`. `register` only declares: data are looked for when a task
is used, under TFDS_DATA_DIR.
"""

from collections.abc import Mapping
import functools
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from upcycle.data import denoising, seqio_superglue, text_metrics, vocabulary

PUBLIC_VOCABULARY = 'gs://t5-data/vocabs/cc_all.32000/sentencepiece.model'
PREPARED_VOCABULARY = 'data/vocabularies/t5.model'
C4 = {
  'c4_v220_span_corruption': 'c4/en:2.2.0',
  'c4_v310_span_corruption': 'c4/en:3.1.0',
}
SUPER_GLUE_MIXTURE = 'super_glue_v102_proportional'


def register(vocabulary_path: str | Path | None = None) -> None:
  """Declares all tasks and mixtures here, once; see `output_features`."""
  if SUPER_GLUE_MIXTURE in seqio.MixtureRegistry.names():
    return
  features = output_features(vocabulary_path)
  _register_c4(features)
  _register_super_glue(features)


def output_features(
  vocabulary_path: str | Path | None = None,
) -> dict[str, seqio.Feature]:
  """Inputs, which may be missing, and targets, in one vocabulary and with EOS.

  Args:
    vocabulary_path: a SentencePiece model without sentinels, such as T5's; None
      takes T5's, the prepared one below ./data if there is one, else the public
      one.

  Raises:
    FileNotFoundError: there is no such local file.
  """
  if vocabulary_path is None:
    prepared = Path(PREPARED_VOCABULARY)
    vocabulary_path = prepared if prepared.exists() else PUBLIC_VOCABULARY
  path = str(vocabulary_path)
  if '://' not in path and not Path(path).is_file():
    raise FileNotFoundError(
      f'There is no vocabulary at {path}; `python scripts/prepare_data.py text '
      '--vocabulary=t5` makes one.'
    )
  words = seqio.SentencePieceVocabulary(path, vocabulary.EXTRA_IDS)
  return {
    'inputs': seqio.Feature(words, add_eos=True, required=False),
    'targets': seqio.Feature(words, add_eos=True),
  }


def _register_c4(features: Mapping[str, seqio.Feature]) -> None:
  for name, tfds_name in C4.items():
    seqio.TaskRegistry.add(
      name,
      source=seqio.TfdsDataSource(tfds_name),
      preprocessors=[
        functools.partial(
          seqio.preprocessors.rekey, key_map={'targets': 'text'}
        ),
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        span_corruption,
        seqio.preprocessors.append_eos_after_trim,
      ],
      output_features=features,
      metric_fns=[],
    )


def _register_super_glue(features: Mapping[str, seqio.Feature]) -> None:
  def add(name, tfds_name, convert, postprocess_fn=None, metrics=(), **source):
    seqio.TaskRegistry.add(
      name,
      source=seqio.TfdsDataSource(tfds_name, **source),
      preprocessors=[
        convert,
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        seqio.preprocessors.append_eos_after_trim,
      ],
      output_features=features,
      postprocess_fn=postprocess_fn,
      metric_fns=list(metrics),
    )

  for name, task in seqio_superglue.CLASSIFICATION.items():
    add(
      f'super_glue_{name}_v102',
      f'super_glue/{name}:1.0.2',
      functools.partial(seqio_superglue.classification, task=task),
      seqio_superglue.postprocessor(name),
      task.metrics,
      splits=['test'] if name.startswith('ax') else None,
    )
  add(
    'super_glue_record_v102',
    'super_glue/record:1.0.2',
    seqio_superglue.record,
    seqio_superglue.record_answers,
    [text_metrics.record],
  )
  add(
    'super_glue_wsc_v102_simple_train',
    'super_glue/wsc.fixed:1.0.2',
    functools.partial(seqio_superglue.wsc, correct_referent_only=True),
    splits=['train'],
  )
  add(
    'super_glue_wsc_v102_simple_eval',
    'super_glue/wsc.fixed:1.0.2',
    seqio_superglue.wsc,
    seqio_superglue.wsc_label,
    [text_metrics.accuracy],
    splits=['validation', 'test'],
  )
  add(
    'dpr_v001_simple',
    'definite_pronoun_resolution:1.1.0',
    seqio_superglue.definite_pronoun,
    metrics=[text_metrics.accuracy],
  )
  seqio.MixtureRegistry.add(
    SUPER_GLUE_MIXTURE, list(seqio_superglue.RATES.items())
  )


def span_corruption(
  ds: tf.data.Dataset,
  sequence_length: Mapping[str, int],
  output_features: Mapping[str, seqio.Feature],
  *,
  noise_density: float = 0.15,
  mean_noise_span_length: float = 3.0,
  documents: int = 128,
  max_document: int = 65536,
) -> tf.data.Dataset:
  """T5's span corruption of tokens in 'targets', as a SeqIO preprocessor.

  Of a very long document one random part counts; 128 documents are joined and
  cut into texts that fill the inputs; the last text of them is shorter. EOS is
  left to SeqIO.

  Raises:
    ValueError: the targets' length is less than the inputs' length needs.
  """
  need = denoising.lengths(
    sequence_length['inputs'], noise_density, mean_noise_span_length
  )
  if sequence_length['targets'] < need.targets:
    raise ValueError(
      f'inputs of {sequence_length["inputs"]} tokens need targets of '
      f'{need.targets}, not {sequence_length["targets"]}.'
    )
  size = output_features['targets'].vocabulary.vocab_size

  @seqio.map_over_dataset(num_seeds=1)
  def part(tokens, seed):
    parts = (tf.size(tokens) + max_document - 1) // max_document
    chosen = tf.random.stateless_uniform([], seed, 0, parts, tf.int32)
    return tokens[chosen * max_document :][:max_document]

  def split(tokens):
    texts = (tf.size(tokens) + need.raw - 1) // need.raw
    return tf.data.Dataset.range(tf.cast(texts, tf.int64)).map(
      lambda i: tokens[i * need.raw :][: need.raw]
    )

  def corrupt_in_numpy(tokens, seed):
    mask = denoising.noise_mask(
      len(tokens),
      np.random.default_rng(seed.view(np.uint32)),  # none below zero
      noise_density,
      mean_noise_span_length,
    )
    example = denoising.corrupt(tokens, mask, size)
    return example['inputs'][:-1], example['targets'][:-1]

  @seqio.map_over_dataset(num_seeds=1)
  def corrupt(tokens, seed):
    inputs, targets = tf.numpy_function(
      corrupt_in_numpy, [tokens, seed], [tf.int32, tf.int32]
    )
    return {
      'inputs': tf.ensure_shape(inputs, [None]),
      'targets': tf.ensure_shape(targets, [None]),
    }

  # One lambda a line, or AutoGraph warns that it cannot tell them apart.
  ds = ds.map(lambda x: x['targets'])
  ds = ds.filter(lambda x: tf.size(x) > 0)
  ds = part(ds).ragged_batch(documents)
  ds = ds.map(lambda x: x.flat_values)
  return corrupt(ds.flat_map(split))
