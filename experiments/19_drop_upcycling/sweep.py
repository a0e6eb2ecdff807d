# SPDX-License-Identifier: Apache-2.0
"""Drop-upcycling."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ()
TITLE = 'Drop-upcycling'
QUESTION = "Does it help to draw half of each expert's hidden units anew?"
PAPER = (
  'Nakamura et al. (2025, arXiv 2502.19261): it starts worse and wins in long '
  'runs.'
)
INITS = {
  'copied': arms.UPCYCLED,
  'half drawn anew': (
    'upcycle',
    {'initialize.InitFrom.expert_init': '@expert_init.drop_upcycle'},
  ),
}
SCALES = arms.scales(INITS, INITS, long=True)
CHECKS = (
  Check('copied', 'half drawn anew', 'start'),
  Check('half drawn anew', 'copied'),
)

summary = verdicts.summary(CHECKS)
