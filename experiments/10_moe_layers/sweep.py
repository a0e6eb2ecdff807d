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
_LAST = {
  f'last {n}': (
    'upcycle',
    {} if n == 2 else {'vit.preset.moe_layers': tuple(range(4 - n, 4))},
  )
  for n in (1, 2, 3, 4)
}
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
_LAST_OF_12 = {
  f'last {n}': ('upcycle', {'vit.preset.moe_layers': tuple(range(12 - n, 12))})
  for n in (2, 4, 5, 6, 8, 10, 12)
}
SCALES = {
  **arms.scales(_T5, _LAST, only=('laptop',)),
  **arms.scales(None, _LAST_OF_12, only=('base',)),
}
CHECKS = {
  'vision': (Check('last 2', 'last 4'), Check('last 2', 'last 1')),
  'language': (Check('all', 'every second', decides=False),),
}

summary = verdicts.summary(CHECKS)
