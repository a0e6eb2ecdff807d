# SPDX-License-Identifier: Apache-2.0
"""Meshes of up to eight devices, and the collectives of a program."""

import collections
import math

import jax

from upcycle import partition
from upcycle.plan import hlo

SHAPES = ((1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2))


def make(shape, num_experts=()):
  data, expert, model = shape
  return partition.make_mesh(
    num_experts,
    data=data,
    expert=expert,
    model=model,
    devices=jax.devices()[: math.prod(shape)],
  )


def collectives(text: str) -> dict[str, list[hlo.Collective]]:
  """Those of a program of eight devices, by kind."""
  found = collections.defaultdict(list)
  for collective in hlo.collectives(text, 8):
    found[collective.kind].append(collective)
  return found
