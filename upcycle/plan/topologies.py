# SPDX-License-Identifier: Apache-2.0
"""From a name, as v5p:4x4x4, to devices that can be compiled for, not used.

JAX is imported only where devices are made: `environment` comes before.
"""

import importlib.util
import math
import re
from typing import Any, NamedTuple

from upcycle.plan.chips import CHIPS, CUDA_TARGET, Chip

FORMS = (
  "CHIP:AxB or CHIP:AxBxC ('v5p:4x4x4', 'v5e:16x16'), of several slices "
  "'2*v5p:4x4x4'; 'h100:SLICESxHOSTSxGPUS'; 'cpu:DEVICES'"
)


class Topology(NamedTuple):
  """Chips and how they are joined.

  Attributes:
    name: as it was given.
    kind: a key of CHIPS, or 'cpu'.
    shape: chips along each axis; of CPUs, their number.
    slices: such blocks, joined by a slower network.
  """

  name: str
  kind: str
  shape: tuple[int, ...]
  slices: int

  @property
  def chips(self) -> int:
    """How many there are in all."""
    return self.slices * math.prod(self.shape)

  @property
  def chip(self) -> Chip | None:
    """What its chips do; None for CPUs."""
    return CHIPS.get(self.kind)

  @property
  def platform(self) -> str:
    """'tpu', 'cuda' or 'cpu'."""
    return self.chip.platform if self.chip else 'cpu'


def parse(name: str) -> Topology:
  """Reads a topology's name.

  Raises:
    ValueError: it is none, or of an unknown chip.
  """
  found = re.fullmatch(r'(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)', name)
  if not found or found[2] not in (*CHIPS, 'cpu'):
    raise ValueError(
      f'There is no topology {name!r}: write {FORMS}; chips are '
      f'{", ".join(CHIPS)}.'
    )
  shape = tuple(int(n) for n in found[3].split('x'))
  axes = {'tpu': (2, 3), 'cuda': (3,), 'cpu': (1,)}
  made = Topology(name, found[2], shape, int(found[1] or 1))
  if len(shape) not in axes[made.platform] or made.chips < 1:
    raise ValueError(f'{name!r} has {len(shape)} axes: write {FORMS}.')
  return made


def environment(topology: Topology) -> dict[str, str]:
  """Variables to set before JAX is imported.

  No TPU or GPU is looked for. Collectives are kept apart from the matmuls that
  they overlap with, or the compiled text would not name them.
  """
  if topology.platform == 'cpu':
    count = f'--xla_force_host_platform_device_count={topology.chips}'
    return {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': count}
  return {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_LOG_DIR': 'disabled',
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'TPU_MIN_LOG_LEVEL': '3',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'LIBTPU_INIT_ARGS': '--xla_tpu_enable_async_collective_fusion=false',
  }


def devices(topology: Topology) -> list[Any]:
  """Devices to make a mesh of.

  Raises:
    ImportError: the compiler for them is not installed.
    ValueError: there are no such ones.
  """
  return {'tpu': _tpu, 'cuda': _cuda, 'cpu': _cpu}[topology.platform](topology)


def _installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:
    return False


def _tpu(topology: Topology) -> list[Any]:
  if not _installed('libtpu'):
    raise ImportError(
      f'{topology.name} is compiled for by libtpu, the extra `tpu-aot`: '
      "pip install 'upcycle[tpu-aot]'. Without it, --topology=cpu:"
      f'{topology.chips} tells parameters and collectives.'
    )
  from jax.experimental import topologies

  chip, shape = topology.chip, (*topology.shape, 1)[:3]
  megacore = {'chip_config_name': 'megacore'} if topology.kind == 'v4' else {}
  block = 'x'.join(map(str, topology.shape))
  try:
    return topologies.get_topology_desc(
      platform='tpu',
      topology_name=f'{topology.kind}:{block}',
      chips_per_host_bounds=tuple(map(min, chip.host, shape)),
      num_slices=topology.slices,
      wrap=tuple(n > 1 and n % chip.wraps == 0 for n in shape),
      **megacore,
    ).devices
  except RuntimeError as error:
    raise ValueError(f'There is no {topology.name}: {error}') from error


def _cuda(topology: Topology) -> list[Any]:
  need = ('jax_cuda12_plugin', 'nvidia.cuda_nvcc')
  missing = [module for module in need if not _installed(module)]
  if missing:
    raise ImportError(
      f'{topology.name} is compiled for by the CUDA plugin of the same version '
      'as JAX: pip install jax-cuda12-plugin jax-cuda12-pjrt '
      f'nvidia-cuda-nvcc-cu12 (not found: {", ".join(missing)}).'
    )
  from jax.experimental import topologies

  return topologies.get_topology_desc(
    platform='cuda',
    topology_name='',
    target_config=CUDA_TARGET,
    topology='x'.join(map(str, topology.shape)),
  ).devices


def _cpu(topology: Topology) -> list[Any]:
  import jax

  found = jax.devices('cpu')
  if len(found) != topology.chips:
    raise ValueError(
      f'JAX has {len(found)} CPU devices, not {topology.chips}: XLA_FLAGS was '
      'set, or JAX used, before.'
    )
  return found
