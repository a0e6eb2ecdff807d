# SPDX-License-Identifier: Apache-2.0
"""Which layers are sparse (claim C10)."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C10',)
TITLE = 'Number of MoE layers'
QUESTION = 'Are more MoE layers better, and may the first block be one?'
PAPER = (
  'Figures 10 and 12: in the last n blocks of a ViT-B/16 more are not always '
  'better even per step: the last 5 or 6 of 12 are best, and a sparse first '
  'block is harmful.'
)
_T5 = {
  'every second': arms.UPCYCLED,
  'all': (
    'upcycle',
    {
      't5.preset.encoder_moe_layers': (0, 1),
      't5.preset.decoder_moe_layers': (0, 1),
    },
  ),
}


def _last(depth, **numbers):
  """The last n blocks of a ViT, by what they are of it."""
  return {
    name.replace('_', ' '): (
      'upcycle',
      {}
      if 2 * n == depth
      else {'vit.preset.moe_layers': tuple(range(depth - n, depth))},
    )
    for name, n in numbers.items()
  }


SCALES = {
  **arms.scales(
    _T5,
    _last(4, last_quarter=1, last_half=2, all_but_the_first=3, all=4),
    only=('laptop', 'early'),
  ),
  **arms.scales(
    None,
    _last(12, last_quarter=3, last_half=6, all_but_the_first=11, all=12),
    only=('base',),
  ),
  **arms.scales(
    None,
    _last(24, last_quarter=6, last_half=12, all_but_the_first=23, all=24),
    only=('large',),
  ),
}
CHECKS = {
  'vision': (
    Check('last half', 'all'),
    Check('last half', 'last quarter'),
    Check('all but the first', 'all'),
  ),
  'language': (Check('all', 'every second', decides=False),),
}

summary = verdicts.summary(CHECKS)
