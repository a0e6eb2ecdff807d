# SPDX-License-Identifier: Apache-2.0
"""What makes any gin file of T5 tiny: bindings, a dense checkpoint, a task."""

import jax

from tests import tiny_text
from upcycle import checkpoints, initialize, optim
from upcycle.data import vocabulary
from upcycle.models import t5

SIZES = {
  'emb_dim': 16,
  'num_heads': 2,
  'head_dim': 8,
  'mlp_dim': 24,
  'num_encoder_layers': 2,
  'num_decoder_layers': 2,
}
TASK = 'tiny_task'


def files(folder) -> dict[str, str]:
  """A tokenized corpus and a dense T5X checkpoint of step 1000 for it."""
  corpus = tiny_text.corpus(folder / 'corpus')
  config = t5.preset('t5_1_1_small', vocab_size=vocab_size(corpus), **SIZES)
  state = initialize.from_scratch(t5.T5(config), optim.adafactor(0.1), 0)
  path = checkpoints.t5x.write(
    folder, state.params, 1000, jax.device_get(state.opt_state.slots)
  )
  return {'corpus': corpus, 'dense': str(path)}


def vocab_size(corpus: str) -> int:
  return vocabulary.load(corpus).padded_size()


def bindings(config_text: str, paths: dict[str, str], model_dir) -> list[str]:
  """Bindings that make the run of a gin file two tiny steps long."""
  sizes = {**SIZES, 'vocab_size': vocab_size(paths['corpus'])}
  lines = [f't5.preset.{name} = {value}' for name, value in sizes.items()]
  lines += [
    f"MODEL_DIR = '{model_dir}'",
    'train.train.num_steps = 2',
    'train.train.eval_batches = 1',
    'train.train.log_every = 1',
  ]
  if 'DENSE_CHECKPOINT' in config_text:
    lines.append(f"DENSE_CHECKPOINT = '{paths['dense']}'")
  if 't5_moe.gin' in config_text:
    lines.append('NUM_EXPERTS = 4')
  if 't5_c4.gin' in config_text:
    lines += [
      f"MIXTURE = '{TASK}'",
      "seqio_tasks.seqio_mixture.module_import = ('tests.tiny_task',)",
      "LENGTHS = {'inputs': 16, 'targets': 8}",
      'BATCH_SIZE = 4',
    ]
  else:
    lines += [
      f"CORPUS = '{paths['corpus']}'",
      f'VOCAB_SIZE = {sizes["vocab_size"]}',
      'text.span_corruption.inputs_length = 16',
      'text.span_corruption.batch_size = 4',
    ]
  return lines
