# SPDX-License-Identifier: Apache-2.0
"""Finetuning of a dense and an upcycled T5 on several tasks (C2, C3)."""

import itertools

from upcycle import results
from upcycle.results import sweep
from upcycle.results.verdicts import Check

CLAIMS = 'C2', 'C3'
TITLE = 'Finetuning of a T5 on several tasks'
QUESTION = (
  'Is the upcycled T5 still ahead of the dense one in the mean over tasks '
  'after full finetuning, each at the rate that is best on validation?'
)
PAPER = (
  'Figure 3: what upcycling gains upstream is still there after finetuning on '
  'SuperGLUE, though noisier: for 55% and 46% of the dense cost Base and Large '
  'gain 1.5 to 2 points.'
)
NOTES = {
  'laptop': (
    'The T5 is that of the demo, twice as wide. Seeds are of finetuning: both '
    'arms start from one upstream run each, that of the upcycled model being '
    'behind (a loss of 3.749 against 3.734), so '
    "that the claim's premise is not met."
  )
}
DENSE = {'t5.preset.encoder_moe': None, 't5.preset.decoder_moe': None}
# Where the checkpoint is, and what differs from the config.
ARMS = {'dense': ('dense', DENSE), 'upcycled': ('upcycle', {})}


def grid(config, checkpoints, rates, bindings, seeds=(0, 1, 2)):
  """A run for every seed, arm and learning rate."""
  return [
    {
      'name': f'{arm}_{rate}_{seed}',
      'config': config,
      'arm': arm,
      'rate': rate,
      'seed': seed,
      'bindings': {
        'CHECKPOINT': f'{checkpoints}/{folder}',
        'LEARNING_RATE': rate,
        'train.train.seed': seed,
        **bindings(seed),
        **changes,
      },
    }
    for seed, (arm, (folder, changes)) in itertools.product(seeds, ARMS.items())
    for rate in rates[arm]
  ]


def local(seed):
  return {
    'train/text.text_pairs.seed': seed,
    'VOCABULARY': 'experiments/00_demo/vocabulary.model',
  }


def superglue(seed):
  return {'train/seqio_tasks.seqio_mixture.seed': seed}


SCALES = {
  # The paper's settings.
  'base': grid(
    'configs/finetune_t5_base.gin',
    'runs/t5_base',
    {'dense': (1e-3,), 'upcycled': (1e-4,)},
    superglue,
  ),
  'large': grid(
    'configs/finetune_t5_large.gin',
    'runs/t5_large',
    {'dense': (1e-3,), 'upcycled': (1e-3,)},
    superglue,
  ),
  # Of the demo, `python scripts/demo.py t5`: rates by one seed, then three.
  'laptop_rates': grid(
    'configs/finetune_t5_laptop.gin',
    'runs/demo_t5',
    dict.fromkeys(ARMS, (0.001, 0.003)),
    local,
    seeds=(0,),
  ),
  'laptop': grid(
    'configs/finetune_t5_laptop.gin',
    'runs/demo_t5',
    dict.fromkeys(ARMS, (0.003,)),
    local,
  ),
}


ENTRIES = {'modality': 'language'}
CHECKS = (Check('upcycled', 'dense', 'end'),)
BASELINES = 'majority', 'naive_bayes'
# What chooses, and what is reported: SuperGLUE's test labels are not public.
MEANS = {'validation/mean': 'test/mean', 'scores/mean': 'scores/mean'}


def best(rows):
  """By arm the rate that validation chooses, its rows, and their metric."""
  metric = next(name for name in MEANS if name in rows[0])
  return {
    arm: (*sweep.best(runs, metric, 'rate'), MEANS[metric])
    for (arm,), runs in sweep.groups(rows, 'arm').items()
  }


def chosen(rows):
  return [
    {**row, 'metric': metric}
    for _, those, metric in (best(rows) if rows else {}).values()
    for row in those
  ]


def summary(rows):
  """Each arm at the rate that validation chooses: its scores and intervals."""
  lines, ended = [], [row for row in rows if 'error' not in row]
  for arm, ((rate,), those, metric) in (best(ended) if ended else {}).items():
    lines.append(f'{arm}: {rate} is best on validation, {len(those)} seeds')
    for name in those[0]:
      if name.startswith((metric.removesuffix('mean'), 'eval/loss')):
        lines += scored(name, those)
  return '\n'.join(lines)


def scored(name, rows):
  """A metric's mean and interval, beside it what needs no model."""
  if name.endswith(BASELINES):
    return []
  values = [row[name] for row in rows]
  mean, (low, high) = sum(values) / len(values), results.interval(values)
  beside = [
    f', {baseline} {rows[0][f"{name}/{baseline}"]:.1f}'
    for baseline in BASELINES
    if f'{name}/{baseline}' in rows[0]
  ]
  return [f'  {name}: {mean:.3f} ({low:.3f} to {high:.3f}){"".join(beside)}']
