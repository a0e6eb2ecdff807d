# SPDX-License-Identifier: Apache-2.0
"""Full finetuning of a dense and an upcycled ViT (claim C3)."""

import itertools

from upcycle.results import sweep
from upcycle.results.verdicts import Check

CLAIMS = ('C3',)
TITLE = 'Full finetuning of a ViT'
QUESTION = (
  'Is the upcycled ViT still ahead of the dense one on test images after full '
  'finetuning, each with the setting that is best on validation?'
)
PAPER = (
  'Figure 3: what upcycling gains upstream is still there after finetuning, '
  'though noisier.'
)
NOTES = {
  'laptop': (
    'Seeds are of finetuning: both arms start from one upstream run each, that '
    'of the upcycled model being ahead (0.723 against 0.716 of precision).'
  )
}
# Where the checkpoint is, and what differs from the config.
ARMS = {
  'dense': ('dense', {'vit.preset.moe': None}),
  'upcycled': ('upcycle', {}),
}


def grid(config, checkpoints, lengths, peaks, seeds):
  """A run for every arm, (steps, warmup), peak learning rate and seed."""
  return [
    {
      'name': f'{arm}_{steps}_{peak}_{seed}',
      'config': config,
      'arm': arm,
      'steps': steps,
      'peak': peak,
      'seed': seed,
      'bindings': {
        'CHECKPOINT': f'{checkpoints}/{folder}',
        'STEPS': steps,
        'WARMUP': warmup,
        'PEAK': peak,
        'train.train.seed': seed,
        'train/images.batches.seed': seed,
        **changes,
      },
    }
    for (arm, (folder, changes)), (steps, warmup), peak, seed in (
      itertools.product(ARMS.items(), lengths, peaks, seeds)
    )
  ]


SCALES = {
  # The paper's twelve runs an arm.
  'base': grid(
    'configs/finetune_vit_b16.gin',
    'runs/vit_b16',
    [(5_000, 200), (10_000, 400)],
    (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003),
    (0,),
  ),
  'laptop': grid(
    'configs/finetune_vit_laptop.gin',
    'runs/vit_laptop',
    [(300, 30)],
    (0.1, 0.03, 0.01),
    (0, 1, 2),
  ),
}


ENTRIES = {'modality': 'vision', 'metric': 'test/accuracy'}
CHECKS = (Check('upcycled', 'dense', 'end'),)


def best(rows):
  """By arm the setting that validation chooses, and its rows."""
  return {
    arm: sweep.best(runs, 'eval/accuracy', 'steps', 'peak')
    for (arm,), runs in sweep.groups(rows, 'arm').items()
  }


def chosen(rows):
  return [row for _, those in best(rows).values() for row in those]


def summary(rows):
  """The setting of each arm that validation chooses, and its test accuracy."""
  lines = []
  for arm, ((steps, peak), those) in best(rows).items():
    accuracy = [100 * row.get('test/accuracy', 0.0) for row in those]
    lines.append(
      f'{arm}: {steps:,} steps at {peak} are best on validation; test accuracy '
      f'{sum(accuracy) / len(accuracy):.2f}% '
      f'({min(accuracy):.2f} to {max(accuracy):.2f}, {len(accuracy)} seeds)'
    )
  return '\n'.join(lines)
