# SPDX-License-Identifier: Apache-2.0
"""Number of experts (claim C9)."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C9',)
TITLE = 'Number of experts'
QUESTION = 'Are more experts better, and is the initial drop larger with them?'
PAPER = (
  'Figures 10 and 11: from 2 to 128, more are better, with diminishing '
  'returns downstream; very many make the initial drop larger.'
)
NUMBERS = {f'E={n}': ('upcycle', {'NUM_EXPERTS': n}) for n in (2, 8, 32)}
SCALES = arms.scales(NUMBERS, NUMBERS)
_CHECKS = (
  Check('E=8', 'E=2'),
  Check('E=32', 'E=8'),
)
CHECKS = {
  # In vision combine weights are renormalised: there is next to no drop.
  'language': (*_CHECKS, Check('E=2', 'E=32', 'start')),
  'vision': _CHECKS,
}

summary = verdicts.summary(CHECKS)
