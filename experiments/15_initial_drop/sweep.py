# SPDX-License-Identifier: Apache-2.0
"""Quality right after surgery (claim C15)."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C15',)
TITLE = 'The initial drop'
QUESTION = 'How much of the dense model is there right after surgery?'
PAPER = (
  'Figure 15: the more capacity, the more; with renormalisation and a large '
  'capacity all of it.'
)


def drops(decoder):
  """One step, for the evaluation before it."""
  found = {'dense': ('dense', {'train.train.num_steps': 1})}
  for name, on in (('raw', False), ('renormalised', True)):
    for c in (1, 2, 4, 8):
      found[f'{name}, C={c}'] = (
        'upcycle',
        {
          'train.train.num_steps': 1,
          'CAPACITY_FACTOR': float(c),
          'routing.expert_choice.renormalize': on,
          **(_decoder(c, on) if decoder else {}),
        },
      )
  return found


def _decoder(c, on):
  return {
    'decoder/moe.MoeConfig.capacity_factor': float(c),
    'routing.top_k.renormalize': on,
  }


FIGURE = 'start'
SCALES = arms.scales(drops(True), drops(False))


def _checks(margin):
  return (
    Check('raw, C=2', 'raw, C=1', 'start'),
    Check('raw, C=4', 'raw, C=2', 'start'),
    Check('raw, C=8', 'raw, C=4', 'start'),
    Check('renormalised, C=2', 'raw, C=2', 'start'),
    Check(
      'renormalised, C=4', 'dense', 'start', relation='equal', margin=margin
    ),
    Check(
      'renormalised, C=8', 'dense', 'start', relation='equal', margin=margin
    ),
  )


CHECKS = {'language': _checks(0.01), 'vision': _checks(0.02)}

summary = verdicts.summary(CHECKS)
