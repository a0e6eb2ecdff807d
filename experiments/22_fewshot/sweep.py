# SPDX-License-Identifier: Apache-2.0
"""What a gain in few-shot accuracy costs (claim C2); the runs of 03_core."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C2',)
TITLE = 'Few-shot accuracy'
QUESTION = (
  'Does a frozen upcycled model transfer better, and does it get more cheaply '
  'to what dense continuation comes to?'
)
PAPER = (
  'A point of 10-shot accuracy on ImageNet costs ViT-B/16 58% more dense '
  'training, or 13% upcycled.'
)
NOTES = {
  'laptop': (
    'The runs of 03_core, and of what is shown there only loss was to decide. '
    'This became a claim after six seeds, three of them of these, had been '
    'looked at. It is measured every 1,000 steps.'
  )
}
METRIC = 'fewshot/10shot/mnist'
BOTH = {'dense': arms.DENSE, 'upcycled': arms.UPCYCLED}
# At paper scale it is measured of checkpoints, by scripts/evaluate.py.
SCALES = {
  'laptop': [
    {**run, 'metric': METRIC}
    for run in arms.scales(vision=BOTH, long=True, seeds=arms.MORE)['laptop']
  ]
}
CHECKS = (
  Check('upcycled', 'dense', 'FLOPs'),
  Check('upcycled', 'dense', 'FLOPs', relation='cheaper'),
  Check('upcycled', 'dense', decides=False),
)

summary = verdicts.summary(CHECKS)
