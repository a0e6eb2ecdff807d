# SPDX-License-Identifier: Apache-2.0
"""Drawing from a model as one of train's evaluations, for runs of processes."""

from tests import tiny_text
from upcycle import decode, infer
from upcycle.data import vocabulary

TEXTS = tiny_text.documents(5)  # no multiple of the devices


def scores(corpus):
  """An evaluation: the scores, by text, of what the model says to each."""

  def evaluation(model, params):
    rows = infer.infer(
      *(model, params, TEXTS, vocabulary.load(corpus)),
      strategy=decode.Sampling(temperature=1.0),
      inputs_length=16,
      max_length=4,
      batch_size=len(TEXTS),
    )
    return {str(i): row['score'] for i, row in enumerate(rows)}

  return evaluation
