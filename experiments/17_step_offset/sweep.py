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
_FRESH = {'initialize.InitFrom.optimizer_state': 'fresh'}
OFFSETS = {
  'kept statistics': arms.UPCYCLED,
  "fresh, T5X's decay": ('upcycle', _FRESH),
  'fresh, decay restarted': (
    'upcycle',
    _FRESH | {'optim.adafactor.step_offset': arms.PRETRAINED},
  ),
}
SCALES = arms.scales(OFFSETS)
CHECKS = (
  Check('fresh, decay restarted', "fresh, T5X's decay"),
  Check('fresh, decay restarted', 'kept statistics', decides=False),
)

summary = verdicts.summary(CHECKS)
