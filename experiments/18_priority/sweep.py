# SPDX-License-Identifier: Apache-2.0
"""Which choices of tokens are served first."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ()
TITLE = 'Priority: token by token, or choice by choice'
QUESTION = (
  "Does a causal order of service cost quality in the decoder's top-2 routing?"
)
PAPER = (
  'The public code serves all first choices before all second ones, which '
  "lets a later token take an earlier one's place; token by token is causal."
)
# Who comes first matters where there is not room for all.
_FULL = {'decoder/moe.MoeConfig.capacity_factor': 2.0}
ORDERS = {
  'token by token': ('upcycle', _FULL),
  'choice by choice': (
    'upcycle',
    _FULL | {'routing.top_k.priority': 'choice'},
  ),
}
SCALES = arms.scales(ORDERS)
CHECKS = (
  Check('token by token', 'choice by choice', relation='equal', margin=0.01),
)

summary = verdicts.summary(CHECKS)
