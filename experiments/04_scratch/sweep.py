# SPDX-License-Identifier: Apache-2.0
"""Upcycling against an MoE from scratch (claim C4)."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C4',)
TITLE = 'Upcycling against an MoE from scratch'
QUESTION = (
  'With an extra budget of up to what the dense model has cost, is upcycling '
  'ahead of a sparse model from scratch, and does that overtake later?'
)
PAPER = (
  'Figure 4: from scratch an MoE learns faster, but needs about 120% of the '
  'dense cost to catch up with the upcycled one (language); with more it '
  'overtakes.'
)
LONG = {'upcycled': arms.UPCYCLED, 'scratch': arms.SCRATCH}
SCALES = arms.scales(LONG, LONG, long=True)

# At laptop scale long runs cost less than two thirds of the dense model, both
# arms as much a step. Where from scratch is better: 20_scaling.
CHECKS = (Check('upcycled', 'scratch'),)

summary = verdicts.summary(CHECKS)
