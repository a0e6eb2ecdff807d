# SPDX-License-Identifier: Apache-2.0
"""Scaling laws: fit.py reads what other sweeps have measured."""

from upcycle.results import verdicts

CLAIMS = ()
TITLE = 'Scaling laws'
QUESTION = (
  'How does the loss depend on what the dense model has cost and on what was '
  'spent since, and from which extra budget on is an MoE from scratch better?'
)
PAPER = (
  'Figure 4, of one dense model: from scratch is better after about 120% of '
  'what it has cost (language).'
)
SCALES = {}
CHECKS = ()
COMMANDS = (
  'python scripts/sweep.py experiments/04_scratch experiments/06_pretraining '
  '--scale=laptop',
  'python experiments/20_scaling/fit.py',
)

summary = verdicts.summary(CHECKS)
