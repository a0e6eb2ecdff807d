# SPDX-License-Identifier: Apache-2.0
"""Routers (claim C7)."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C7',)
TITLE = 'Routers'
QUESTION = 'Is Expert Choice as good as top-k routing for equal steps?'
PAPER = (
  'Table 2 and figure 8: per step Expert Choice is about as good as top-k, '
  'which needs batch-prioritised routing; per training time it is better.'
)


def top_k(moe, k, priority, options):
  """Token choice in an encoder, with the load-balance loss of the paper."""
  return 'upcycle', {
    f'{moe}MoeConfig.router': '@encoder/routing.top_k',
    f'{moe}MoeConfig.capacity_factor': float(k),
    'encoder/routing.top_k.k': k,
    'encoder/routing.top_k.batch_priority': priority,
    **options,
  }


def routers(moe, options):
  return {
    'Expert Choice, C=2': arms.UPCYCLED,
    'top-2': top_k(moe, 2, False, options),
    'top-2 by priority': top_k(moe, 2, True, options),
    'Expert Choice, C=1': ('upcycle', {f'{moe}MoeConfig.capacity_factor': 1.0}),
    'top-1 by priority': top_k(moe, 1, True, options),
  }


# The mean over all layers that have the loss is taken: with those of an encoder
# there are twice as many, and each keeps the weight that it has without them.
_LANGUAGE = {
  'encoder/moe.MoeConfig.aux_weights': (('load_balance', 0.02),),
  'decoder/moe.MoeConfig.aux_weights': (('load_balance', 0.02),),
}
# As Expert Choice does in vision.
_VISION = {
  'moe.MoeConfig.aux_weights': (('load_balance', 0.01),),
  'encoder/routing.top_k.renormalize': True,
}
SCALES = arms.scales(
  routers('encoder/moe.', _LANGUAGE), routers('moe.', _VISION)
)


def _checks(margin):
  pairs = (
    ('Expert Choice, C=2', 'top-2 by priority'),
    ('Expert Choice, C=1', 'top-1 by priority'),
  )
  return (
    *(Check(*p, relation='equal', margin=margin) for p in pairs),
    *(Check(*p, 'seconds', decides=False) for p in pairs),
    Check('top-2 by priority', 'top-2', decides=False),
  )


CHECKS = {'language': _checks(0.01), 'vision': _checks(0.02)}

summary = verdicts.summary(CHECKS)
