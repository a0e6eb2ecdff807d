# SPDX-License-Identifier: Apache-2.0
"""Sparse against dense upcycling, by depth tiling (claim C5)."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C5',)
TITLE = 'Depth tiling'
QUESTION = (
  'Does a dense model made deeper by repeating its layers, at the cost of the '
  'upcycled one, stay behind it?'
)
PAPER = (
  'Figure 5: dense upcycling (depth tiling) gains quickly, but stays below '
  'sparse upcycling.'
)
THREE = {
  'dense': arms.DENSE,
  'tiled': arms.TILED,
  'upcycled': arms.UPCYCLED,
}
SCALES = arms.scales(THREE, THREE)
CHECKS = (
  Check('upcycled', 'tiled'),
  Check('upcycled', 'tiled', 'FLOPs'),
  Check('tiled', 'dense', decides=False),
)

summary = verdicts.summary(CHECKS)
