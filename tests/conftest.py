# SPDX-License-Identifier: Apache-2.0
"""Before any test: shapes checked at run time, exact matmuls, one CPU device.

Tests that need several devices start a process of their own.
"""

import gc
import json
import os
import pathlib
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')
os.environ.setdefault('MPLBACKEND', 'agg')
# Compiling takes longer than running here: quickly rather than well (LLVM's
# optimizations alone are off, fusions are not made by MLIR, a program is one
# module), and each program once for all processes.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')
os.environ['XLA_FLAGS'] = ' '.join(
  dict.fromkeys(
    (
      *os.environ.get('XLA_FLAGS', '').split(),
      '--xla_cpu_use_fusion_emitters=false',
      '--xla_cpu_parallel_codegen_split_count=1',
    )
  )
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  PROGRAMS = tempfile.TemporaryDirectory(prefix='programs-')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = PROGRAMS.name

from jaxtyping import install_import_hook  # JAX reads the variables above
import pytest

# Tracing makes objects by the million, few of them in cycles.
gc.set_threshold(50_000)
# Every annotation in upcycle/ becomes an assertion; an int is a float.
install_import_hook(
  'upcycle',
  'beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))',
)

# They need more devices, which a process has or not: see test_on_mesh.py.
ON_MESH = 'device_count' in os.environ.get('XLA_FLAGS', '')
collect_ignore = [] if ON_MESH else ['on_mesh']

GOLDEN = pathlib.Path(__file__).parent / 'golden'


def golden(name: str) -> tuple[dict, dict]:
  """The arrays of tests/golden/<name>.npz by key, and its description."""
  import numpy as np

  file = GOLDEN / f'{name}.npz'
  if not file.exists():
    raise FileNotFoundError(
      f'{file} is missing: it belongs to the repository, so check it out '
      f'again; tests/golden/README.md says how it was made.'
    )
  with np.load(file) as data:
    arrays = dict(data)
  if 'meta_json' in arrays:
    return arrays, json.loads(arrays.pop('meta_json').tobytes())
  return arrays, json.loads(str(arrays.pop('meta', '{}')))


def with_devices(count: int) -> dict[str, str]:
  """Variables of a process that has so many CPU devices."""
  flag = f'--xla_force_host_platform_device_count={count}'
  return os.environ | {'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {flag}'}


@pytest.fixture
def fakes(tmp_path):
  """A folder of stand-ins for what launchers call."""
  from tests import fake_cloud

  return fake_cloud.install(tmp_path / 'fakes')
