# SPDX-License-Identifier: Apache-2.0
"""How long a step would take at best, by a model small enough to be stated."""

from collections.abc import Sequence
import itertools
from typing import Any, NamedTuple

import numpy as np

from upcycle.plan.hlo import Collective
from upcycle.plan.topologies import Topology

ASSUMPTIONS = (
  'Seconds are those of matrix products at the peak rate or of memory traffic '
  'at the full bandwidth, whichever is more, and of collectives on top, of '
  'which none is hidden behind computation.',
  'A device sends 2 (n - 1) / n of the bytes of an all-reduce over n devices, '
  '(n - 1) / n of those of an all-gather, reduce-scatter or all-to-all, all of '
  'a permute. All links of a chip share it evenly, in one direction each; a '
  'permute has one link.',
  'In an all-to-all a byte crosses as many links as its devices lie apart on '
  'the torus, on average.',
  'Between slices or hosts the network carries what leaves them: a share of '
  '1 / (devices of a group in one of them) of what a device sends, but of an '
  'all-to-all all that is for others, and of a send everything.',
  'Memory traffic is what the compiler says that instructions read and write, '
  'which counts what stays on the chip too; at least, and where the compiler '
  'does not say, it is that of state and batch, read and written once, and of '
  'temporaries, written and read once.',
)
FACTORS = {'all-reduce': 2}


class Seconds(NamedTuple):
  """Of one step.

  Attributes:
    compute: matrix products at the peak rate.
    memory: traffic at the memory's bandwidth.
    links: collectives.
    step: max(compute, memory) + links.
    least: the same with the least of memory traffic, and links hidden behind
      the rest.
  """

  compute: float
  memory: float
  links: float
  step: float
  least: float


def seconds(
  topology: Topology,
  devices: Sequence[Any],
  flops: float,
  traffic: float,
  least_traffic: float,
  collectives: Sequence[Collective],
) -> Seconds:
  """Of a step, by ASSUMPTIONS.

  Args:
    topology: of the devices, with a chip.
    devices: by partition: a mesh's, in its order.
    flops: of one device.
    traffic: bytes of one device.
    least_traffic: that it cannot do without.
    collectives: of one device.
  """
  chip = topology.chip
  share = topology.chips / len(devices)  # of a chip: two devices may share one
  compute = flops / (chip.flops * share)
  memory, least = (
    n / (chip.hbm_bandwidth * share) for n in (traffic, least_traffic)
  )
  links = sum(
    c.times * collective_seconds(c, [devices[i] for i in c.group], topology)
    for c in collectives
  )
  step = max(compute, memory) + links
  return Seconds(compute, memory, links, step, max(compute, least, links))


def collective_seconds(
  collective: Collective, group: Sequence[Any], topology: Topology
) -> float:
  """Of one collective that runs once.

  Args:
    collective: of a device.
    group: the devices that take part together.
    topology: of all devices.
  """
  chip, n, kind = topology.chip, len(group), collective.kind
  if kind == 'send':
    return collective.bytes / chip.network
  if kind == 'collective-permute':
    sent, hops = collective.bytes, chip.links
  else:
    sent = FACTORS.get(kind, 1) * collective.bytes * (n - 1) / max(n, 1)
    exchanged = kind.endswith('all-to-all')
    hops = mean_hops(group, topology) if exchanged else 1
  near = sent * hops / chip.link_bandwidth
  return max(near, _leaving(kind, sent, group, topology) / chip.network)


def _leaving(
  kind: str, sent: float, group: Sequence[Any], topology: Topology
) -> float:
  """Bytes that a device sends out of its slice, or its host of GPUs."""
  place = 'process_index' if topology.platform == 'cuda' else 'slice_index'
  places = [getattr(d, place, 0) or 0 for d in group]
  here = places.count(places[0]) if places else 0
  if here == len(group):
    return 0
  if kind.endswith('all-to-all'):
    return sent * (len(group) - here) / (len(group) - 1)
  return sent / here


def mean_hops(group: Sequence[Any], topology: Topology) -> float:
  """Links between two devices of a group on the torus, on average.

  1 where any two are one link apart: GPUs, which share a switch.
  """
  chip = topology.chip
  if chip.links == 1 or len(group) < 2:
    return 1
  # A slice by itself: what crosses slices is the network's.
  slice_ = [
    d
    for d in group
    if getattr(d, 'slice_index', 0) == getattr(group[0], 'slice_index', 0)
  ]
  at = np.array([d.coords for d in slice_])
  apart = np.abs(at[:, None] - at[None])
  for axis, length in enumerate(topology.shape):
    if length % chip.wraps == 0:
      around = length - apart[..., axis]
      apart[..., axis] = np.minimum(apart[..., axis], around)
  pairs = max(len(slice_) * (len(slice_) - 1), 1)
  return max(float(apart.sum() / pairs), 1)


def by_kind(collectives: Sequence[Collective]) -> dict[str, dict[str, Any]]:
  """Count, bytes and largest group of each kind, of one device and step."""
  found = {}
  kind = lambda c: c.kind  # noqa: E731
  for name, those in itertools.groupby(sorted(collectives, key=kind), kind):
    those = list(those)
    found[name] = {
      'count': sum(c.times for c in those),
      'bytes': sum(c.times * c.bytes for c in those),
      'group': max(len(c.group) for c in those),
    }
  return found
