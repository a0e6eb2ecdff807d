# SPDX-License-Identifier: Apache-2.0
"""Writes the golden file of big_vision's ViT, one case a way of pooling.

Run with a clone of github.com/google-research/big_vision at commit 0127fb6 on
the path, in any environment with jax, flax and scipy; nothing here is imported
by the project:

    PYTHONPATH=big_vision JAX_PLATFORMS=cpu \
        .venv/bin/python tests/golden/make_big_vision.py

It writes big_vision.npz beside itself. README.md says what it holds.
"""

import json
import pathlib
import sys
import types

import flax
import jax
import jax.numpy as jnp
import numpy as np

# The model needs none of big_vision's utilities, and they need TensorFlow.
sys.modules['big_vision.utils'] = types.ModuleType('big_vision.utils')
from big_vision.models import vit  # noqa: E402

HERE = pathlib.Path(__file__).parent
SIZES = dict(
  num_classes=10, patch_size=(4, 4), width=32, depth=4, mlp_dim=64, num_heads=4
)
CASES = {
  'gap': dict(pool_type='gap'),
  'gap_rep': dict(pool_type='gap', rep_size=24, depth=1),
  'gap_sincos2d': dict(pool_type='gap', posemb='sincos2d'),
  'tok': dict(pool_type='tok'),
  'map': dict(pool_type='map'),
  'map_scan': dict(pool_type='map', scan=True),
}


def random_params(model, images, rng):
  """Parameters none of which is zero, and that bfloat16 holds exactly."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  params = {}
  for path, leaf in flax.traverse_util.flatten_dict(shapes, sep='/').items():
    x = rng.standard_normal(leaf.shape)
    if path.endswith('kernel'):
      stacked = '/encoderblock/' in path
      fan_in = {'embedding': 48, 'out': 32}.get(
        path.split('/')[-2], leaf.shape[stacked]
      )
      x /= fan_in**0.5
    elif path.endswith('scale'):
      x = 1 + 0.2 * x
    else:
      x *= 0.5
    params[path] = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
  return params


def main():
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
  arrays = {'images': images}
  for name, case in CASES.items():
    model = vit.Model(**SIZES | case)
    params = random_params(model, images, rng)
    tree = flax.traverse_util.unflatten_dict(params, sep='/')
    with jax.default_matmul_precision('highest'):
      logits, _ = model.apply({'params': tree}, images)
    arrays |= {f'{name}/params/{path}': x for path, x in params.items()}
    arrays[f'{name}/logits'] = np.asarray(logits)
    print(name, len(params), 'arrays, logits std', logits.std())
  meta = {
    'big_vision': '0127fb6b337ee2a27bf4e54dea79cff176527356',
    'jax': jax.__version__,
    'flax': flax.__version__,
    'sizes': SIZES,
    'cases': CASES,
    'params': 'as big_vision names them; every value is one of bfloat16',
  }
  arrays['meta'] = np.asarray(json.dumps(meta))
  np.savez_compressed(HERE / 'big_vision.npz', **arrays)


if __name__ == '__main__':
  main()
