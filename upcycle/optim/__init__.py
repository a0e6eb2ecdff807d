# SPDX-License-Identifier: Apache-2.0
"""Schedules, an expert-aware Adafactor, AdamW and SGD."""

from upcycle.optim.adafactor import EXPERT_AXES, AdafactorState, adafactor
from upcycle.optim.gradient import adamw, sgd, with_step
from upcycle.optim.schedules import (
  Schedule,
  constant,
  cosine,
  inverse_sqrt,
  linear,
  rsqrt,
)

__all__ = [
  'EXPERT_AXES',
  'AdafactorState',
  'Schedule',
  'adafactor',
  'adamw',
  'constant',
  'cosine',
  'inverse_sqrt',
  'linear',
  'rsqrt',
  'sgd',
  'with_step',
]
