# SPDX-License-Identifier: Apache-2.0
"""Chips as data: what their makers say that they do at best."""

from typing import NamedTuple

GIB, GB = 2**30, 1e9


class Chip(NamedTuple):
  """One chip, by public figures.

  Attributes:
    platform: that compiles for it: 'tpu' or 'cuda'.
    flops: peak bfloat16 operations a second, dense.
    hbm: bytes of memory.
    usable: bytes that the compiler leaves to programs, by its own error on one
      that is too large (libtpu 0.0.42.1); of GPUs, all.
    hbm_bandwidth: bytes a second to and from it.
    links: to other chips of a slice or host; 1 into a switch.
    link_bandwidth: bytes a second of all links together, in one direction.
    network: bytes a second to other slices (TPU) or hosts (GPU), one direction.
    host: chips of a host, along each axis of a topology.
    wraps: an axis of a topology closes to a ring if this divides its length.
    sources: where the figures are from.
  """

  platform: str
  flops: float
  hbm: float
  usable: float
  hbm_bandwidth: float
  links: int
  link_bandwidth: float
  network: float
  host: tuple[int, ...]
  wraps: int
  sources: tuple[str, ...]


_CLOUD = 'https://docs.cloud.google.com/tpu/docs/'
_BOOK = 'https://jax-ml.github.io/scaling-book/tpus/'

# Links: Google gives both directions together for v5e, v5p and v6e; half of it
# is one direction. v4 has six links of 50 GB/s in each (Jouppi et al., 2023,
# section 2). To other slices: the data center network's rate per chip, for v4
# and v6e that of v5e and v5p, since none is given.
CHIPS: dict[str, Chip] = {
  'v4': Chip(
    platform='tpu',
    flops=275e12,
    hbm=32 * GIB,
    usable=30.75 * GIB,
    hbm_bandwidth=1200 * GB,
    links=6,
    link_bandwidth=300 * GB,
    network=50e9 / 8,
    host=(2, 2, 1),
    wraps=4,
    sources=(f'{_CLOUD}v4', 'https://arxiv.org/abs/2304.01433', _BOOK),
  ),
  'v5e': Chip(
    platform='tpu',
    flops=197e12,
    hbm=16 * GIB,
    usable=15.75 * GIB,
    hbm_bandwidth=819 * GB,
    links=4,
    link_bandwidth=200 * GB,
    network=25e9 / 8,
    host=(2, 2, 1),
    wraps=16,
    sources=(f'{_CLOUD}v5e', _BOOK),
  ),
  'v5p': Chip(
    platform='tpu',
    flops=459e12,
    hbm=95 * GIB,
    usable=95.74 * GIB,
    hbm_bandwidth=2765 * GB,
    links=6,
    link_bandwidth=600 * GB,
    network=50e9 / 8,
    host=(2, 2, 1),
    wraps=4,
    sources=(f'{_CLOUD}v5p', _BOOK),
  ),
  'v6e': Chip(
    platform='tpu',
    flops=918e12,
    hbm=32 * GIB,
    usable=31.25 * GIB,
    hbm_bandwidth=1638 * GB,
    links=4,
    link_bandwidth=400 * GB,
    network=25e9 / 8,
    host=(2, 2, 1),
    wraps=16,
    sources=(f'{_CLOUD}v6e', _BOOK),
  ),
  # NVIDIA prints 1,979 TFLOP/s "with sparsity", twice the dense rate, and
  # NVLink's 900 GB/s in both directions. A network card of 400 Gbit/s a GPU.
  'h100': Chip(
    platform='cuda',
    flops=989.4e12,
    hbm=80 * GB,
    usable=80 * GB,
    hbm_bandwidth=3350 * GB,
    links=1,
    link_bandwidth=450 * GB,
    network=50 * GB,
    host=(1, 1, 8),
    wraps=0,
    sources=(
      'https://www.nvidia.com/en-us/data-center/h100/',
      'https://www.nvidia.com/en-us/data-center/dgx-h100/',
    ),
  ),
}

# What XLA wants to know of a GPU that is not there: NVIDIA's H100 SXM, from its
# "H100 Tensor Core GPU Architecture" and the CUDA guide's compute capability 9.
CUDA_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: 3350000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 85000000000
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
