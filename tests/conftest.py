# SPDX-License-Identifier: Apache-2.0
"""Before any test: shapes checked at run time, exact matmuls, one CPU device.

Tests that need several devices start a process of their own.
"""

import contextlib
import json
import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')
os.environ.setdefault('MPLBACKEND', 'agg')
# scripts/train.py keeps compiled programs in the user's cache folder.
os.environ.setdefault('JAX_ENABLE_COMPILATION_CACHE', 'false')

from jaxtyping import install_import_hook  # JAX reads the variables above

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


@contextlib.contextmanager
def compiled_once(folder):
  """Equal programs are compiled once, and quickly rather than well."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  options = {
    'jax_enable_compilation_cache': True,
    'jax_compilation_cache_dir': str(folder),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_disable_most_optimizations': True,
  }
  before = {name: jax.config.values[name] for name in options}

  def configure(values):
    for name, value in values.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()  # it has made up its mind before

  configure(options)
  try:
    yield
  finally:
    configure(before)
