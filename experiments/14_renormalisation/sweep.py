# SPDX-License-Identifier: Apache-2.0
"""Renormalised combine weights (claim C14)."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C14',)
TITLE = 'Renormalisation of combine weights'
QUESTION = "Should a token's combine weights sum to one?"
PAPER = (
  'Appendix B.7, table 3: it helps upcycling in vision, is neutral there from '
  'scratch, and hurts in language (79.3 to 78.8 in SuperGLUE).'
)
_ON = {'routing.expert_choice.renormalize': True}
_OFF = {'routing.expert_choice.renormalize': False}
SCALES = arms.scales(
  {'raw': arms.UPCYCLED, 'renormalised': ('upcycle', _ON)},
  {
    'renormalised': arms.UPCYCLED,
    'raw': ('upcycle', _OFF),
    'scratch, renormalised': arms.SCRATCH,
    'scratch, raw': ('scratch_moe', _OFF),
  },
)
CHECKS = {
  'language': (Check('raw', 'renormalised'),),
  'vision': (
    Check('renormalised', 'raw'),
    Check(
      'scratch, renormalised', 'scratch, raw', relation='equal', margin=0.02
    ),
  ),
}

summary = verdicts.summary(CHECKS)
