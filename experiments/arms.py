# SPDX-License-Identifier: Apache-2.0
"""Runs that experiments share: what they start from, their seeds and sizes.

An arm is (kind, bindings): the kind names the config, such as 'upcycle', and
the bindings are what the arm sets beside it. Arms of one seed start from the
same dense model, and see the same batches in the same order. A seed is one of
the whole pipeline: it decides the dense model's start and batches too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Arm = tuple[str, Mapping[str, Any]]


class Scale(NamedTuple):
  """One modality at one scale.

  Attributes:
    config: what names its configs, 'configs/<kind>_<config>.gin'.
    pretrained: steps of the dense model that arms start from.
    steps: of each arm; None: the config's.
    bindings: of all its runs.
    seeds: of the pipeline.
    checkpoint: a dense model that is there already; '' trains one a seed.
    order: the binding that is the seed of the batches; '': the config's.
  """

  config: str
  pretrained: int
  steps: int | None = None
  bindings: Mapping[str, Any] = {}
  seeds: Sequence[int] = (0,)
  checkpoint: str = ''
  order: str = ''

  def data(self, seed: int) -> dict[str, int]:
    return {self.order: seed} if self.order else {}


T5_LAPTOP = {
  't5.preset.emb_dim': 64,
  't5.preset.num_heads': 2,
  't5.preset.mlp_dim': 128,
  'text.span_corruption.inputs_length': 64,
  'VOCAB_SIZE': 2176,
  'CORPUS': 'data/text/default_vocabulary_acaf758f',
  'train.train.eval_every': 250,
  'train.train.log_every': 250,
  'train.train.checkpoint_every': 100_000,
}
VIT_LAPTOP = {
  # What validates is of the typefaces that are trained on: upstream, as in the
  # paper. On unseen ones a model that fits better is not always better.
  'images.batches.source': '@images.part()',
  'images.part.source': '@images.local()',
  'images.part.every': 25,
  'train/images.part.others': True,
  'eval/images.local.split': 'train',
  # Without a last phase that lowers the rate to 0: models can be compared
  # after any number of steps.
  'optim.rsqrt.total': None,
  'optim.rsqrt.cooldown': 0,
  'train.train.eval_every': 250,
  'train.train.evaluations_every': 1000,
  'train.train.log_every': 250,
  'train.train.checkpoint_every': 100_000,
}
SCALES: dict[str, dict[str, Scale]] = {
  'laptop': {
    'language': Scale(
      't5_laptop',
      2000,
      2000,
      T5_LAPTOP,
      (0, 1, 2),
      order='train/text.span_corruption.seed',
    ),
    'vision': Scale(
      'vit_laptop',
      2000,
      1500,
      VIT_LAPTOP,
      (0, 1, 2),
      order='train/images.batches.seed',
    ),
  },
  'base': {
    'language': Scale('t5_base', 1_000_000, checkpoint='runs/t5_base/pretrain'),
    'vision': Scale('vit_b16', 500_000, checkpoint='runs/vit_b16/pretrain'),
  },
  'large': {
    'language': Scale(
      't5_large', 1_000_000, checkpoint='runs/t5_large/pretrain'
    ),
    'vision': Scale('vit_l16', 500_000, checkpoint='runs/vit_l16/pretrain'),
  },
}
# Vision too is decided by its loss: at this scale precision is the noisier of
# the two, and moves with it.
METRICS = {'language': 'eval/loss', 'vision': 'eval/loss'}
PRETRAINED = object()  # in bindings: the dense model's steps


def pretrain(
  modality: str, seed: int, scale: str, steps: int
) -> dict[str, Any] | str:
  """The dense model that arms start from, as a run or a folder."""
  of = SCALES[scale][modality]
  if of.checkpoint:
    return of.checkpoint
  return {
    'name': f'{modality}_pretrain_{seed}',
    'config': f'configs/pretrain_{of.config}.gin',
    'bindings': {
      **{k: v for k, v in of.bindings.items() if 'optim' not in k},
      'train.train.num_steps': steps,
      'train.train.seed': seed,
      **of.data(100 + seed),
    },
  }


def scales(
  language: Mapping[str, Arm] | None = None,
  vision: Mapping[str, Arm] | None = None,
  *,
  times: float = 1,
  only: Sequence[str] = tuple(SCALES),
) -> dict[str, list[dict]]:
  """Every arm with every seed, by scale, seed by seed.

  Args:
    language: arms by name. Of bindings, 'PRETRAINED' is not gin's: it is what
      share of its steps the dense model is trained for.
    vision: the same.
    times: what the scale's steps are multiplied by.
    only: the scales.
  """
  arms = {'language': language or {}, 'vision': vision or {}}
  return {
    scale: [
      run(modality, name, arm, seed, scale, times)
      for modality, those in arms.items()
      for seed in SCALES[scale][modality].seeds
      for name, arm in those.items()
    ]
    for scale in only
  }


def run(
  modality: str,
  name: str,
  arm: Arm,
  seed: int,
  scale: str = 'laptop',
  times: float = 1,
) -> dict[str, Any]:
  """One arm with one seed."""
  of = SCALES[scale][modality]
  kind, changes = arm
  changes = {
    k: of.pretrained if v is PRETRAINED else v for k, v in changes.items()
  }
  share, start = changes.pop('PRETRAINED', 1), {}
  if kind != 'scratch_moe':
    steps = round(share * of.pretrained)
    start['DENSE_CHECKPOINT'] = pretrain(modality, seed, scale, steps)
  length = of.steps and {'train.train.num_steps': round(times * of.steps)}
  return {
    'name': f'{modality}_{name}_{seed}',
    'modality': modality,
    'arm': name,
    'seed': seed,
    'metric': METRICS[modality],
    'config': f'configs/{kind}_{of.config}.gin',
    'bindings': {
      **of.bindings,
      **(length or {}),
      'train.train.seed': seed,
      **of.data(200 + seed),
      **start,
      **changes,
    },
  }


DENSE: Arm = ('dense', {})
UPCYCLED: Arm = ('upcycle', {})
SCRATCH: Arm = ('scratch_moe', {})
TILED: Arm = ('tile', {})
