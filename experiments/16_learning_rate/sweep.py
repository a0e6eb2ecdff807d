# SPDX-License-Identifier: Apache-2.0
"""Learning rate, resumed or reset."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ()
TITLE = 'Learning rate: resumed or reset'
QUESTION = "Is it better to go on with the dense run's rate, or to start anew?"
PAPER = (
  'The paper goes on with the schedule. He et al. (2024, arXiv 2410.07524) '
  'found a rate reset to its peak better than a small constant one.'
)
_RESET = {'initialize.InitFrom.step': 0}
RATES = {
  'resumed': arms.UPCYCLED,
  'reset': ('upcycle', _RESET),
  'dense, resumed': arms.DENSE,
  'dense, reset': ('dense', _RESET),
}
SCALES = arms.scales(RATES, RATES)
CHECKS = (
  Check('reset', 'resumed'),
  Check('dense, reset', 'dense, resumed', decides=False),
)

summary = verdicts.summary(CHECKS)
