# SPDX-License-Identifier: Apache-2.0
"""A SeqIO task as a user would register one, in place of C4."""

import seqio
import tensorflow as tf

from tests import tiny_runs, tiny_text
from upcycle.data import text_metrics


def _rows(split, shuffle_files, seed=None):
  del split, shuffle_files, seed
  texts = tiny_text.documents(40)
  return tf.data.Dataset.from_tensor_slices(
    {'inputs': texts, 'targets': texts[::-1]}
  )


_FEATURE = seqio.Feature(seqio.ByteVocabulary(extra_ids=0))
seqio.TaskRegistry.add(
  tiny_runs.TASK,
  source=seqio.FunctionDataSource(_rows, splits=['train', 'validation']),
  preprocessors=[
    seqio.preprocessors.tokenize,
    seqio.preprocessors.append_eos_after_trim,
  ],
  output_features={'inputs': _FEATURE, 'targets': _FEATURE},
  metric_fns=[text_metrics.accuracy],
)
