# SPDX-License-Identifier: Apache-2.0
"""Downcycling: what upcycling made is undone, what was trained is merged."""

import functools

import jax
import numpy as np
import pytest

from tests import tiny_vit_runs
from tests.conftest import GOLDEN
from tests.test_t5 import SPARSE, TINY
from upcycle import checkpoints, downcycle, initialize, trees
from upcycle.models import moe, t5, vit

ENCODER = 'encoder/layers_1/mlp'
BLOCK = 'Transformer/encoderblock_1'


@functools.cache
def vit_config(sparse):
  experts = moe.MoeConfig(num_experts=3, group_size=None)
  sizes = tiny_vit_runs.SIZES | {'image_size': 8}
  return vit.ViTConfig(**sizes, moe=experts if sparse else None)


def shapes(model):
  return initialize.param_shapes(model)


def random(model):
  rng = np.random.default_rng(0)
  draw = lambda x: rng.normal(size=x.shape).astype(x.dtype)  # noqa: E731
  return jax.tree.map(draw, shapes(model))


def assert_equal(a, b):
  a, b = trees.flatten(a), trees.flatten(b)
  assert a.keys() == b.keys()
  for path, x in a.items():
    np.testing.assert_array_equal(b[path], x, err_msg=path)


@pytest.mark.parametrize('choose', ['mean', 0, 2])
@pytest.mark.parametrize('family', ['t5', 'vit'])
def test_copies_become_what_they_were(family, choose):
  """Bit by bit; three copies' sum, in float32, is not three times one."""
  if family == 't5':
    model = t5.T5(SPARSE)
    dense = checkpoints.read(GOLDEN / 't5x_tiny_dense_checkpoint').params
  else:
    model = vit.ViT(vit_config(True))
    dense = random(model.dense())
  sparse = initialize.upcycled(dense, model, seed=0)
  back = downcycle.downcycle(sparse, shapes(model.dense()), choose=choose)
  assert_equal(dense, back)


def test_lazy_leaves_stay_so():
  source = checkpoints.read(GOLDEN / 't5x_tiny_dense_checkpoint').params
  sparse = initialize.upcycled(source, t5.T5(SPARSE), seed=0)
  dense = downcycle.downcycle(sparse, shapes(t5.T5(TINY)), choose=0)
  for path, x in trees.flatten(dense).items():
    assert isinstance(x, trees.LazyArray), path


@pytest.mark.parametrize(
  ('config', 'layer', 'experts', 'mlp', 'out'),
  [
    (SPARSE, ENCODER, f'{ENCODER}/expert', ENCODER, 'wo/kernel'),
    (vit_config(True), f'{BLOCK}/Moe', f'{BLOCK}/Moe/Mlp',
     f'{BLOCK}/MlpBlock_0', 'Dense_1/bias'),
  ],
)  # fmt: skip
def test_choice_and_scale(config, layer, experts, mlp, out):
  model = t5.T5(config) if config is SPARSE else vit.ViT(config)
  sparse, want = random(model), shapes(model.dense())
  flat = trees.flatten(sparse)

  def made(choose, **kwargs):
    tree = downcycle.downcycle(sparse, want, choose=choose, **kwargs)
    return trees.flatten(tree)

  stacked = flat[f'{experts}/{out}']
  np.testing.assert_array_equal(made(1)[f'{mlp}/{out}'], stacked[1])
  mean = made('mean')
  np.testing.assert_allclose(
    mean[f'{mlp}/{out}'], stacked.mean(0), rtol=1e-5, atol=1e-6
  )
  half = made('mean', scales={layer: 0.5})
  changed = {p for p in mean if not np.array_equal(mean[p], half[p])}
  name, _, _ = out.partition('/')
  assert changed == {p for p in mean if p.startswith(f'{mlp}/{name}/')}
  for path in changed:
    np.testing.assert_array_equal(half[path], mean[path] * np.float32(0.5))


def test_refuses_what_does_not_fit():
  sparse, dense = shapes(t5.T5(SPARSE)), shapes(t5.T5(TINY))
  with pytest.raises(ValueError, match=r'not 4: .*layers_1/mlp has 4, '):
    downcycle.downcycle(sparse, dense, choose=4)
  with pytest.raises(ValueError, match='Scales of nowhere/mlp'):
    downcycle.downcycle(
      sparse, dense, choose='mean', scales={'nowhere/mlp': 1.0}
    )
  with pytest.raises(ValueError, match='There is no MoE layer'):
    downcycle.downcycle(dense, dense, choose=0)
  flat = trees.flatten(sparse)
  moved = {f'x/{p}' if p.endswith('wo/kernel') else p: flat[p] for p in flat}
  with pytest.raises(ValueError, match=r'(?s)missing source.*unused source'):
    downcycle.downcycle(trees.unflatten(moved), dense, choose='mean')
