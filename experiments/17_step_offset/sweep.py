# SPDX-License-Identifier: Apache-2.0
"""Adafactor's decay, restarted or not."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ()
TITLE = "Adafactor's step offset"
QUESTION = (
  'With fresh statistics, does it help to restart their decay at the step of '
  'surgery?'
)
PAPER = (
  'T5X goes on with the decay of the global step: with fresh statistics the '
  'raw update is then far too large, and only its clipping holds it.'
)
_FRESH = {arms.KEPT: 'fresh'}
OFFSETS = {
  'kept statistics': ('upcycle', {arms.KEPT: 'expand'}),
  "fresh, T5X's decay": ('upcycle', _FRESH),
  'fresh, decay restarted': (
    'upcycle',
    _FRESH | {'optim.adafactor.step_offset': lambda steps: steps},
  ),
}
SCALES = arms.scales(OFFSETS)
CHECKS = (
  Check('fresh, decay restarted', "fresh, T5X's decay"),
  Check('fresh, decay restarted', 'kept statistics', decides=False),
)

summary = verdicts.summary(CHECKS)
