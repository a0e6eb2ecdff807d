# SPDX-License-Identifier: Apache-2.0
"""Optimizer state, kept or fresh (claim C13)."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C13',)
TITLE = 'Optimizer state'
QUESTION = "Does it help to go on from the dense run's optimizer state?"
PAPER = (
  'Figure 14: it helps vision at every number of experts, and does not help '
  'language.'
)
STATES = {
  state: ('upcycle', {arms.KEPT: binding})
  for state, binding in (('kept', 'expand'), ('fresh', 'fresh'))
}
SCALES = arms.scales(STATES, STATES)
CHECKS = {
  'vision': (Check('kept', 'fresh'),),
  'language': (Check('kept', 'fresh', relation='no gain', margin=0.01),),
}

summary = verdicts.summary(CHECKS)
