# SPDX-License-Identifier: Apache-2.0
"""Scaling laws: fit.py reads what other sweeps have measured."""

import json
from pathlib import Path

from upcycle.results import scaling_words, verdicts

CLAIMS = ('C4',)
TITLE = 'Scaling laws'
QUESTION = (
  'How does the loss depend on what the dense model has cost and on what was '
  'spent since, and from which extra budget on is an MoE from scratch better?'
)
PAPER = (
  'Figure 4, of one dense model: from scratch is better after about 120% of '
  'what it has cost (language).'
)
NOTES = {
  'laptop': (
    'Runs from scratch ended after two thirds of the dense cost: crossings are '
    'extrapolated, and in language from a plateau, so that there they are no '
    'measurement.'
  )
}
SCALES = {}
CHECKS = ()
COMMANDS = (
  'python scripts/sweep.py experiments/04_scratch experiments/06_pretraining '
  '--scale={scale}',
  'python experiments/20_scaling/fit.py --scale={scale}',
)


def _fits(scale):
  """What fit.py has found at a scale, if it was run."""
  file = Path(__file__).with_name('fit.json')
  found = json.loads(file.read_text()) if file.exists() else {}
  return found.get(scale, {})


def table(scale):
  return scaling_words.table(_fits(scale))


def answers(scale):
  return scaling_words.answers(_fits(scale))


summary = verdicts.summary(CHECKS)
