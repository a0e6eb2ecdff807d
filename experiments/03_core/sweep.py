# SPDX-License-Identifier: Apache-2.0
"""Upcycled against continued dense training (claim C1)."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C1',)
TITLE = 'Upcycling against dense continuation'
QUESTION = (
  'From one dense checkpoint, is the upcycled model ahead of the dense one '
  'that is continued, once the extra compute is not trivial, and does it draw '
  'away?'
)
PAPER = (
  'Figure 2: nearly equal for very small budgets, then upcycled above dense, '
  'and the gap widens; the useful range is 10% to 60% of the dense cost.'
)
NOTES = {
  'laptop': (
    'Vision has six seeds: three were added after three had not decided it. '
    'That verdicts go by means over the last third was chosen on runs of '
    'another scale, after two seeds of it had been seen.'
  )
}
BOTH = {'dense': arms.DENSE, 'upcycled': arms.UPCYCLED}
SCALES = {
  **arms.scales(BOTH, BOTH, long=True),
  'laptop': [
    *arms.scales(BOTH, long=True)['laptop'],
    # Three seeds did not decide it (LOG.md).
    *arms.scales(vision=BOTH, long=True, seeds=arms.MORE)['laptop'],
  ],
}

CHECKS = (
  Check('upcycled', 'dense'),
  Check('upcycled', 'dense', 'FLOPs'),
  Check('upcycled', 'dense', relation='widens'),
  Check('upcycled', 'dense', 'FLOPs', relation='cheaper'),
  Check('upcycled', 'dense', 'FLOPs', share=0.2, decides=False),
  Check('upcycled', 'dense', 'seconds', decides=False),
)

summary = verdicts.summary(CHECKS)
