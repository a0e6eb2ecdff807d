# SPDX-License-Identifier: Apache-2.0
"""Meshes of up to eight devices, and the collectives of a program."""

import math
import re

import jax

from upcycle import partition

SHAPES = ((1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2))
KINDS = 'all-to-all', 'all-gather', 'all-reduce', 'reduce-scatter'


def make(shape, num_experts=()):
  data, expert, model = shape
  return partition.make_mesh(
    num_experts,
    data=data,
    expert=expert,
    model=model,
    devices=jax.devices()[: math.prod(shape)],
  )


def collectives(text: str) -> dict[str, list[str]]:
  """Lines of a compiled program's text by kind, asynchronous forms too."""
  return {
    kind: re.findall(rf'^.* {kind}(?:-start)?\(.*$', text, re.MULTILINE)
    for kind in KINDS
  }


def largest(line: str) -> int:
  """Numbers in the largest array that a line's result has."""
  result = line.split(' = ', 1)[1].split('(%', 1)[0]
  shapes = re.findall(r'\w+\[([\d,]*)\]', result)
  return max(math.prod(map(int, filter(None, s.split(',')))) for s in shapes)
