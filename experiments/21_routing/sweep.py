# SPDX-License-Identifier: Apache-2.0
"""What routing does: one run of each modality, to look into."""

from experiments import arms
from upcycle.results import verdicts

CLAIMS = ()
TITLE = 'What routing does'
QUESTION = (
  'How evenly are experts used, how far do they move apart, and what does a '
  'router go by?'
)
PAPER = 'It does not look into its experts.'
KEPT = (
  'upcycle',
  {
    'train.train.checkpoint_every': 250,
    'train.train.keep_checkpoints': None,
    'train.train.log_every': 50,
  },
)
SCALES = {
  'laptop': [
    arms.run(modality, 'upcycled', KEPT, arms.SEEDS[0])
    for modality in ('language', 'vision')
  ]
}
CHECKS = ()
COMMANDS = (
  'python scripts/sweep.py experiments/21_routing --scale={scale}',
  'python experiments/21_routing/figures.py --measure',
)

summary = verdicts.summary(CHECKS)
