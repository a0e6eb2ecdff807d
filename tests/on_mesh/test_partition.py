# SPDX-License-Identifier: Apache-2.0
"""Which mesh is made, and what of a training state a device holds."""

import dataclasses
import math
import re

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from tests import tiny_runs
from tests.on_mesh import meshes
from upcycle import initialize, optim, partition, trees
from upcycle.models import moe, t5, vit


def shape(*args, **kwargs):
  return tuple(partition.make_mesh(*args, **kwargs).shape.values())


@pytest.mark.parametrize(
  'experts, given, expected',
  [
    ((), {}, (8, 1, 1)),
    ((32, 32), {}, (1, 8, 1)),
    ((4,), {}, (2, 4, 1)),
    ((12, 32), {}, (2, 4, 1)),  # what divides all numbers of experts
    ((3,), {}, (8, 1, 1)),
    ((32,), {'model': 2}, (1, 4, 2)),
    ((32,), {'data': 4}, (4, 2, 1)),
    ((32,), {'expert': 2}, (4, 2, 1)),
    ((), {'data': 2, 'model': 2}, (2, 2, 2)),
  ],
)
def test_the_mesh_is_chosen_from_devices_and_experts(experts, given, expected):
  assert shape(experts, **given) == expected


@pytest.mark.parametrize(
  'experts, given, message',
  [
    ((32,), {'data': 3}, 'data 3, expert 2, model 1 does not use 8 devices'),
    ((32,), {'model': 16}, 'does not use 8 devices'),
    ((6,), {'expert': 4}, r'of 4 does not divide \[6\] experts'),
  ],
)
def test_meshes_that_cannot_be(experts, given, message):
  with pytest.raises(ValueError, match=message):
    partition.make_mesh(experts, **given)


@dataclasses.dataclass(frozen=True)
class Chip:
  """As much of a device as a mesh is made from."""

  id: int
  process_index: int = 0
  platform: str = 'gpu'
  device_kind: str = 'none'
  core_on_chip: int = 0
  coords: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Device(Chip):
  """One that says which slice it is of."""

  slice_index: int = 0


def test_slices_share_the_data_axis():
  place = lambda i: (i % 2, i // 2 % 2, 0)  # noqa: E731
  devices = [
    Device(i, i // 4, 'tpu', coords=place(i), slice_index=i // 4)
    for i in range(8)
  ]
  mesh = partition.make_mesh((32,), devices=devices)
  assert tuple(mesh.shape.values()) == (2, 4, 1)
  for row in range(2):
    assert {d.slice_index for d in mesh.devices[row].flat} == {row}
  with pytest.raises(ValueError, match='2 slices do not divide'):
    partition.make_mesh((32,), data=1, devices=devices)
  # Without more than one, chips need not know of slices.
  chips = [Chip(i, 0, 'tpu', coords=(i % 2, i // 2, 0)) for i in range(8)]
  assert partition.make_mesh((32,), devices=chips).shape['expert'] == 8
  # Hosts of GPUs are slices to JAX: experts may go over all of them.
  devices = [Device(i, i // 4, slice_index=i // 4) for i in range(8)]
  mesh = partition.make_mesh((32,), devices=devices)
  assert tuple(mesh.shape.values()) == (1, 8, 1)


def test_a_model_axis_stays_in_a_process():
  devices = [Device(i, process_index=i // 2) for i in range(8)]
  partition.make_mesh((4,), model=2, devices=devices)
  with pytest.raises(ValueError, match='A model axis of 4 crosses processes'):
    partition.make_mesh((2,), model=4, devices=devices)


def sparse_t5():
  config = t5.preset(
    't5_1_1_small',
    vocab_size=64,
    encoder_moe=moe.MoeConfig(num_experts=8),
    **tiny_runs.SIZES,
  )
  return t5.T5(config)


def sparse_vit(**changes):
  config = vit.preset(
    'vit_ti16',
    image_size=32,
    depth=2,
    num_heads=4,
    num_classes=10,
    moe=moe.MoeConfig(num_experts=8),
    **changes,
  )
  return vit.ViT(config)


def specs(tree) -> dict[str, P]:
  return {p: s.spec for p, s in trees.flatten(tree).items()}


def whole(spec: P) -> bool:
  return all(axis is None for axis in spec)


@pytest.mark.parametrize('model', [sparse_t5, sparse_vit])
def test_large_parameters_are_split(model):
  """All kernels of experts, heads, hidden layers and vocabularies."""
  with jax.set_mesh(meshes.make((2, 2, 2), (8,))):
    shapes = initialize.param_shapes(model())
    found = specs(partition.shardings(shapes))
  for path, spec in found.items():
    expert = re.search('/expert/|/Moe/Mlp/', path)
    assert ('expert' in spec) == bool(expert), path
    split = re.search(r'kernel|token_embedder', path) and not re.search(
      '(?i)router|^embedding|^head|pre_logits', path
    )
    if split:
      assert 'model' in spec, path
    elif not expert and not re.search('rel_embedding|bias', path):
      assert whole(spec), path


def test_axes_that_do_not_divide_stay_whole():
  with jax.set_mesh(meshes.make((1, 1, 8))):
    params = {'decoder': {'logits_dense': {'kernel': np.zeros((4, 12))}}}
    assert whole(*specs(partition.shardings(params)).values())


@pytest.mark.parametrize('optimizer', ['adafactor', 'adamw'])
def test_optimizer_state_lies_as_its_parameters(optimizer):
  tx = {
    'adafactor': optim.adafactor(0.1, min_dim_size_to_factor=8, beta1=0.9),
    'adamw': optax.adamw(0.1),
  }[optimizer]
  with jax.set_mesh(meshes.make((2, 2, 2), (8,))):
    start = lambda: initialize.from_scratch(sparse_t5(), tx, 0)  # noqa: E731
    state = initialize.on_mesh(start)()
    places = partition.shardings(state)
  found = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.sharding.spec
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
  }
  at = 'encoder/layers_1/mlp/expert/wi_0/kernel'
  slots = {p.replace(at, '*'): s for p, s in found.items() if at in p}
  matrix = P('expert', None, 'model')
  if optimizer == 'adamw':
    assert slots == {'0/mu/*': matrix, '0/nu/*': matrix}
  else:
    row, col = P('expert', None), P('expert', 'model')
    assert slots == {
      'slots/*/m': matrix,
      'slots/*/v_row': row,
      'slots/*/v_col': col,
    }
  # Not a byte more than its share, parameters and all.
  for leaf, place in zip(*map(jax.tree.leaves, (state, places)), strict=True):
    assert leaf.sharding == place
    (shard, *_) = leaf.addressable_shards
    assert shard.data.shape == place.shard_shape(leaf.shape)


def test_batches_that_cannot_be_shared():
  with jax.set_mesh(meshes.make((8, 1, 1))):
    with pytest.raises(ValueError, match=r'8 devices cannot share \[12\] rows'):
      partition.put_batch({'x': np.zeros((12, 3))})
    placed = partition.put_batch({'x': np.arange(16)})['x']
  assert [s.data.tolist() for s in placed.addressable_shards] == [
    [2 * i, 2 * i + 1] for i in range(8)
  ]


def test_without_a_mesh_there_is_one_device():
  params = partition.shardings({'a': np.zeros(3)})
  assert (
    len(params['a'].device_set)
    == 1
    == math.prod(partition.mesh().shape.values())
  )
