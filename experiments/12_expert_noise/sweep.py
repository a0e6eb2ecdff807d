# SPDX-License-Identifier: Apache-2.0
"""Noise on the copied experts (claim C12)."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C12',)
TITLE = 'Noise on copied experts'
QUESTION = 'Do copies with a little noise do better, or worse, than plain ones?'
PAPER = 'Appendix B.9: a little noise has no effect, much of it hurts.'
_INIT = 'initialize.InitFrom.expert_init'
NOISE = {'plain copies': arms.UPCYCLED} | {
  f'noise {std:g}': (
    'upcycle',
    {
      _INIT: '@expert_init.copy_with_noise',
      'expert_init.copy_with_noise.std': std,
    },
  )
  for std in (0.01, 0.1, 1.0)
}
SCALES = arms.scales(NOISE, NOISE)


def _checks(margin):
  return (
    Check('noise 0.01', 'plain copies', relation='equal', margin=margin),
    Check('plain copies', 'noise 1'),
    Check('plain copies', 'noise 0.1', decides=False),
  )


CHECKS = {'language': _checks(0.01), 'vision': _checks(0.02)}

summary = verdicts.summary(CHECKS)
