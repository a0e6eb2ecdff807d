# SPDX-License-Identifier: Apache-2.0
"""Routers: pure functions from router logits to `Routing`, or to `Ragged`.

A router is called as
router(logits, capacity, mask=..., room=..., causal=..., key=...) and says which
token fills which slot of which expert, and with what weight the expert's output
is added back. `capacity` is how many slots there are, `room` how many of them
the tokens of a group may fill, where padding makes that fewer. A key is for
noise: without one, as in evaluation, there is none. Axes: G groups, S tokens a
group, E experts, C slots of an expert in a group, K choices of a token.

Capacity has one convention here, T5X's: `capacity_factor * S / E` slots,
whatever K is. V-MoE and Tutel multiply by K: their factor times K is ours.
"""

from upcycle.routing.base import Ragged, Routing, add_noise, capacity
from upcycle.routing.experts_choose import expert_choice
from upcycle.routing.losses import (
  importance_loss,
  load_balance_loss,
  load_loss,
  z_loss,
)
from upcycle.routing.tokens_choose import dropless, top_k

__all__ = [
  'Ragged',
  'Routing',
  'add_noise',
  'capacity',
  'dropless',
  'expert_choice',
  'importance_loss',
  'load_balance_loss',
  'load_loss',
  'top_k',
  'z_loss',
]
