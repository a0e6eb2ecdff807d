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
    steps: of each arm.
    long: of those that have more.
    bindings: of all its runs.
    sparse: of those with MoE layers beside them.
    defaults: what the configs bind already: an arm that binds it to the same is
      the same run as one that does not.
    seeds: of the pipeline.
    checkpoint: a dense model that is there already, those of fewer steps beside
      it with their number at the end; '' trains one a seed.
    order: the binding that is the seed of the batches.
  """

  config: str
  pretrained: int
  steps: int
  long: int
  bindings: Mapping[str, Any] = {}
  sparse: Mapping[str, Any] = {}
  defaults: Mapping[str, Any] = {}
  seeds: Sequence[int] = (0,)
  checkpoint: str = ''
  order: str = ''


LAPTOP = {
  'train.train.eval_every': 250,
  'train.train.log_every': 250,
  'train.train.checkpoint_every': 100_000,
}
T5_LAPTOP = LAPTOP | {
  't5.preset.emb_dim': 64,
  't5.preset.num_heads': 2,
  't5.preset.mlp_dim': 128,
  'text.span_corruption.inputs_length': 64,
  'VOCAB_SIZE': 2176,
  'CORPUS': 'data/text/default_vocabulary_acaf758f',
}
# Its decoder has 600 tokens a batch, too few for its experts to be chosen as
# often as each other: with 2 a third of them lose a choice, and with it goes
# what upcycling gains (LOG.md).
T5_SPARSE = {'decoder/moe.MoeConfig.capacity_factor': 4.0}
VIT_LAPTOP = LAPTOP | {
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
  'train.train.evaluations_every': 1000,
}
SPARSE = 'upcycle', 'scratch_moe'  # kinds with MoE layers
KEPT = 'initialize.InitFrom.optimizer_state'
DEFAULTS = {'NUM_EXPERTS': 8, 'CAPACITY_FACTOR': 2.0}
PAPERS = {'NUM_EXPERTS': 32, 'CAPACITY_FACTOR': 2.0}
# Others than those that the scale was chosen by (LOG.md).
SEEDS = 3, 4, 5
MORE = *SEEDS, 6, 7, 8


def _paper(config: str, pretrained: int, kept: str, order: str) -> Scale:
  """One of the paper's models, from a dense checkpoint that is laid there."""
  return Scale(
    config,
    pretrained,
    100_000,
    200_000,
    defaults=PAPERS | {KEPT: kept},
    seeds=SEEDS,
    checkpoint=f'runs/{config}/pretrain',
    order=order,
  )


# Of published checkpoints of T5X, and of ImageNet-21k.
_T5 = 1_000_000, 'fresh', 'train/seqio_tasks.seqio_mixture.seed'
_VIT = 500_000, 'expand', 'train/images.batches.seed'
_VIT_LAPTOP = Scale(
  'vit_laptop',
  6000,
  1500,
  3000,
  VIT_LAPTOP,
  defaults=DEFAULTS | {KEPT: 'expand'},
  seeds=SEEDS,
  order='train/images.batches.seed',
)
SCALES: dict[str, dict[str, Scale]] = {
  'laptop': {
    'language': Scale(
      't5_laptop',
      6000,
      1000,
      3000,
      T5_LAPTOP,
      T5_SPARSE,
      DEFAULTS | {KEPT: 'expand'},
      SEEDS,
      order='train/text.span_corruption.seed',
    ),
    'vision': _VIT_LAPTOP,
  },
  # Of a dense model that is far from done (LOG.md).
  'early': {'vision': _VIT_LAPTOP._replace(pretrained=2000)},
  'base': {
    'language': _paper('t5_base', *_T5),
    'vision': _paper('vit_b16', *_VIT),
  },
  'large': {
    'language': _paper('t5_large', *_T5),
    'vision': _paper('vit_l16', *_VIT),
  },
}
ABOUT = {
  'laptop': (
    'Scale laptop: a T5 (2 + 2 layers of width 64, English text in 2,176 '
    'pieces, rows of 64, 32 a batch) and a ViT (4 blocks of width 32, patches '
    'of 8 x 8 pixels, 182 letters in 121 font families, 128 a batch). Unless '
    'it is said, the dense model of a seed is trained for 6,000 steps, and MoE '
    'layers have 8 experts. What comes after the dense model is counted.'
  ),
}
# Vision too is decided by its loss: at laptop scale precision is the noisier of
# the two, and moves with it (LOG.md).
METRICS = {'language': 'eval/loss', 'vision': 'eval/loss'}


def pretrain(
  modality: str, seed: int, scale: str, steps: int
) -> dict[str, Any] | str:
  """The dense model that arms start from, as a run or a folder."""
  of = SCALES[scale][modality]
  if of.checkpoint:
    earlier = '' if steps == of.pretrained else f'_{steps}'
    return of.checkpoint + earlier
  return {
    'name': f'{modality}_pretrain_{seed}',
    'config': f'configs/pretrain_{of.config}.gin',
    'bindings': {
      **of.bindings,
      'train.train.num_steps': steps,
      'train.train.seed': seed,
      of.order: 100 + seed,
    },
  }


def scales(
  language: Mapping[str, Arm] | None = None,
  vision: Mapping[str, Arm] | None = None,
  *,
  long: bool = False,
  seeds: Sequence[int] = (),
  only: Sequence[str] = tuple(SCALES),
) -> dict[str, list[dict]]:
  """Every arm with every seed, by scale, seed by seed.

  Args:
    language: arms by name. Of bindings, 'PRETRAINED' is not gin's: it is what
      share of its steps the dense model is trained for. A value that is a
      function is called with the number of these steps.
    vision: the same.
    long: whether they have the scale's long runs.
    seeds: of the pipeline; none: the scale's own.
    only: the scales.
  """
  arms = {'language': language or {}, 'vision': vision or {}}
  found = {
    scale: [
      run(modality, name, arm, seed, scale, long)
      for modality, those in arms.items()
      if modality in SCALES[scale]
      for seed in seeds or SCALES[scale][modality].seeds
      for name, arm in those.items()
    ]
    for scale in only
  }
  return {scale: runs for scale, runs in found.items() if runs}


def run(
  modality: str,
  name: str,
  arm: Arm,
  seed: int,
  scale: str = 'laptop',
  long: bool = False,
) -> dict[str, Any]:
  """One arm with one seed."""
  of = SCALES[scale][modality]
  kind, changes = arm
  changes = {
    key: value(of.pretrained) if callable(value) else value
    for key, value in changes.items()
    if key not in of.defaults or of.defaults[key] != value
  }
  share, start = changes.pop('PRETRAINED', 1), {}
  if kind != 'scratch_moe':
    steps = round(share * of.pretrained)
    start['DENSE_CHECKPOINT'] = pretrain(modality, seed, scale, steps)
  return {
    'name': f'{modality}_{name}_{seed}',
    'modality': modality,
    'arm': name,
    'seed': seed,
    'metric': METRICS[modality],
    'config': f'configs/{kind}_{of.config}.gin',
    'bindings': {
      **of.bindings,
      **(of.sparse if kind in SPARSE else {}),
      'train.train.num_steps': of.long if long else of.steps,
      'train.train.seed': seed,
      of.order: 200 + seed,
      **start,
      **changes,
    },
  }


DENSE: Arm = ('dense', {})
UPCYCLED: Arm = ('upcycle', {})
SCRATCH: Arm = ('scratch_moe', {})
TILED: Arm = ('tile', {})
