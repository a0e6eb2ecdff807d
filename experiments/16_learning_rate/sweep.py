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
# The rate alone: the decay of kept statistics goes on.
_T5 = {arms.KEPT: 'expand'}
_T5_RESET = _RESET | _T5 | {'optim.adafactor.step_offset': lambda steps: -steps}


def _rates(resumed, reset):
  return {
    'resumed': ('upcycle', resumed),
    'reset': ('upcycle', reset),
    'dense, resumed': ('dense', resumed),
    'dense, reset': ('dense', reset),
  }


SCALES = arms.scales(_rates(_T5, _T5_RESET), _rates({}, _RESET))
CHECKS = (
  Check('reset', 'resumed'),
  Check('dense, reset', 'dense, resumed', decides=False),
)

summary = verdicts.summary(CHECKS)
