# SPDX-License-Identifier: Apache-2.0
"""How long the dense model was trained (claim C6)."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C6',)
TITLE = 'Amount of dense pretraining'
QUESTION = 'Is the gain over dense continuation the same from any checkpoint?'
PAPER = (
  'Figure 6: the gain of 200,000 more steps is about the same whatever the '
  'dense checkpoint they start from.'
)
NOTES = {
  'laptop': (
    'In language none of the gains is told from 0 (see the checks): that they '
    'are alike says little.'
  )
}
SHARES = 0.25, 0.5, 1
BOTH = {
  f'{name} from {share:.0%}': (kind, {'PRETRAINED': share})
  for share in SHARES
  for name, kind in (('dense', 'dense'), ('upcycled', 'upcycle'))
}
SCALES = arms.scales(BOTH, BOTH)
_LAST = 'upcycled from 100%', 'dense from 100%'


CHECKS = tuple(
  Check(
    f'upcycled from {share:.0%}',
    f'dense from {share:.0%}',
    relation='equal',
    margin=0.02,
    beyond=_LAST,
  )
  for share in SHARES[:-1]
) + tuple(
  Check(f'upcycled from {share:.0%}', f'dense from {share:.0%}')
  for share in SHARES
)

summary = verdicts.summary(CHECKS)
