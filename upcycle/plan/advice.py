# SPDX-License-Identifier: Apache-2.0
"""What to change where a step does not fit."""

from collections.abc import Iterator
import math
from typing import NamedTuple

from upcycle.plan.chips import CHIPS, GIB
from upcycle.plan.topologies import Topology


class Facts(NamedTuple):
  """What advice goes by.

  Attributes:
    topology: what the step is for.
    mesh: lengths of its axes.
    num_experts: of each sparse layer.
    state: bytes of parameters and optimizer on a device.
    gradients: bytes of parameters on a device, which gradients take again.
    needed: bytes of a device that the step takes.
    available: that there are.
    rows: of a batch.
    microbatches: parts of it.
    remat: whether activations are computed anew.
  """

  topology: Topology
  mesh: dict[str, int]
  num_experts: tuple[int, ...]
  state: int
  gradients: int
  needed: int
  available: float
  rows: int
  microbatches: int
  remat: bool


def gib(nbytes: float) -> str:
  """'1.50 GiB'."""
  return f'{nbytes / GIB:,.2f} GiB'


def verdict(facts: Facts) -> str:
  """One sentence: whether it fits."""
  fits = facts.needed <= facts.available
  return (
    f'{"Fits" if fits else "Does not fit"}: needs {gib(facts.needed)} of '
    f'{gib(facts.available)} on each device.'
  )


def advice(facts: Facts) -> list[str]:
  """What would make it fit, the likeliest first; nothing if it fits."""
  if facts.needed <= facts.available:
    return []
  held = facts.state + facts.gradients
  activations = facts.needed - held
  first, second = _for_state(facts), _for_activations(facts)
  if activations > held:
    first, second = second, first
  return [*first, *second, *_for_both(facts)]


def _for_state(facts: Facts) -> Iterator[str]:
  mesh = facts.mesh
  experts = math.gcd(*facts.num_experts)
  if mesh['expert'] < experts and mesh['data'] > 1:
    longest = math.gcd(experts, mesh['expert'] * mesh['data'])
    if longest > mesh['expert']:
      yield (
        f'a longer expert axis ({longest} in place of {mesh["expert"]}): '
        'experts are not repeated over it'
      )
  host = facts.topology.chip.host if facts.topology.chip else (1,)
  others = mesh['data'] * mesh['expert']
  if mesh['model'] < math.prod(host) and others % 2 == 0:
    yield (
      f'a longer model axis ({2 * mesh["model"]} in place of {mesh["model"]}): '
      'kernels are split over it'
    )


def _for_activations(facts: Facts) -> Iterator[str]:
  if not facts.remat:
    yield (
      'remat (--gin.t5.preset.remat=True or --gin.vit.preset.remat=True): '
      'activations of a layer are computed anew in its backward pass'
    )
  shards = facts.mesh['data'] * facts.mesh['expert']
  parts = 2 * facts.microbatches
  if facts.rows % (parts * shards) == 0:
    yield f'microbatches (--gin.train.train.microbatches={parts})'
  elif facts.rows > shards:
    yield f'fewer rows (--batch_size={max(facts.rows // 2, shards)})'


def _for_both(facts: Facts) -> Iterator[str]:
  larger = [k for k, c in CHIPS.items() if c.usable > 1.05 * facts.available]
  yield 'more devices: what is split over an axis is divided by its length'
  if larger:
    yield f'chips with more memory ({", ".join(larger)})'
