# SPDX-License-Identifier: Apache-2.0
"""Capacity factor (claim C8)."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C8',)
TITLE = 'Capacity factor'
QUESTION = 'How many experts should process a token?'
PAPER = (
  'Figure 9: in vision C = 2 and 3 beat 1 and 5 for equal compute, in '
  'language C = 2 is best; more is better where time does not count.'
)


def _factors(binding):
  """Of Expert Choice: top-2 of a decoder cannot fill more than two slots."""
  return {
    f'C={c}': ('upcycle', {} if c == 2 else {binding: float(c)})
    for c in (1, 2, 3, 5)
  }


SCALES = arms.scales(
  _factors('encoder/moe.MoeConfig.capacity_factor'), _factors('CAPACITY_FACTOR')
)
CHECKS = (
  Check('C=2', 'C=1', 'FLOPs'),
  Check('C=2', 'C=5', 'FLOPs'),
  Check('C=2', 'C=1'),
  Check('C=5', 'C=1'),
  Check('C=2', 'C=3', 'FLOPs', decides=False),
)

summary = verdicts.summary(CHECKS)
