# SPDX-License-Identifier: Apache-2.0
"""Where experts come from (claim C11)."""

from experiments import arms
from upcycle.results import verdicts
from upcycle.results.verdicts import Check

CLAIMS = ('C11',)
TITLE = 'Copied, fresh or mixed experts'
QUESTION = (
  'Are copies of the dense MLP better experts than fresh ones, or a mix?'
)
PAPER = (
  'Figure 13: copied beat random and mixed ones, at every number of experts.'
)
_INIT = 'initialize.InitFrom.expert_init'
INITS = {
  f'{name}, E={n}': (
    'upcycle',
    {'NUM_EXPERTS': n} | ({_INIT: f'@expert_init.{init}'} if init else {}),
  )
  for n in (8, 32)
  for name, init in (
    ('copied', ''),
    ('fresh', 'fresh'),
    ('mixed', 'partly_fresh'),
  )
}
SCALES = arms.scales(INITS, INITS)
CHECKS = tuple(
  Check(f'copied, E={n}', f'{other}, E={n}')
  for n in (8, 32)
  for other in ('fresh', 'mixed')
)

summary = verdicts.summary(CHECKS)
