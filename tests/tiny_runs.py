# SPDX-License-Identifier: Apache-2.0
"""What makes any gin file of T5 tiny: bindings, checkpoints, tasks."""

import functools

import jax

from tests import tiny_text
from upcycle import checkpoints, initialize, optim, routing
from upcycle.data import (
  manifests,
  text_baselines,
  text_splits,
  text_tasks,
  vocabulary,
)
from upcycle.models import moe, t5

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
  """A corpus, tasks, and a dense and a sparse T5X checkpoint of step 1000."""
  corpus = tiny_text.corpus(folder / 'corpus')
  config = functools.partial(
    t5.preset, 't5_1_1_small', vocab_size=vocab_size(corpus), **SIZES
  )
  top_2 = moe.MoeConfig(num_experts=4, router=routing.top_k)
  experts = moe.MoeConfig(num_experts=4)
  sparse = config(encoder_moe=experts, decoder_moe=top_2)
  return {
    'corpus': corpus,
    'dense': save(folder / 'dense', config()),
    'sparse': save(folder / 'sparse', sparse),
    'tasks': tasks(folder / 'tasks'),
  }


def save(folder, config: t5.T5Config) -> str:
  """Saves a fresh model with its optimizer's state, as of step 1000."""
  state = initialize.from_scratch(t5.T5(config), optim.adafactor(0.1), 0)
  slots = jax.device_get(state.opt_state.slots)
  return str(checkpoints.t5x.write(folder, state.params, 1000, slots))


def tasks(folder) -> str:
  """Six examples of every task in every split, as if prepared."""
  for name, task in text_tasks.TASKS.items():
    examples = [
      text_splits.Example('', f'{name} {i}', task.labels[i % 2])
      for i in range(6)
    ]
    fill = functools.partial(_fill, examples, task)
    manifests.write(folder / name, fill)
  return str(folder)


def _fill(examples, task, folder) -> dict:
  for split in text_splits.CAPS:
    (folder / f'{split}.jsonl').write_bytes(text_tasks.lines(examples))
  splits = dict.fromkeys(text_splits.CAPS, examples)
  scores = text_baselines.scores(splits, task.labels, task.metrics)
  return {'baselines': scores}


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
  if 'depth_tile' in config_text:
    lines.append('t5.preset.num_encoder_layers = 3')
  if 't5_moe.gin' in config_text:
    lines.append('NUM_EXPERTS = 4')
  if 't5_finetune.gin' in config_text:
    lines.append(f"CHECKPOINT = '{paths['sparse']}'")
  if 'superglue.gin' in config_text:
    module = 'seqio_evaluation.SeqioEvaluation.module_import'
    lines += [
      f"{module} = ('tests.tiny_task',)",
      'decode.predict.max_length = 4',
    ]
  if 'Tasks()' in config_text:
    lines += [
      f"VOCABULARY = '{paths['corpus']}'",
      f"text_tasks.files.directory = '{paths['tasks']}'",
      f"evaluate_tasks.Tasks.directory = '{paths['tasks']}'",
      'text.text_pairs.inputs_length = 16',
      'text.text_pairs.targets_length = 8',
      'text.text_pairs.batch_size = 4',
      'evaluate_tasks.Tasks.inputs_length = 16',
      'evaluate_tasks.Tasks.max_length = 4',
      'evaluate_tasks.Tasks.batch_size = 8',
    ]
  if 't5_c4.gin' in config_text or 'superglue.gin' in config_text:
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
