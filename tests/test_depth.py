# SPDX-License-Identifier: Apache-2.0
"""Depth tiling: which layer is made of which, and what comes of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests import test_t5, test_vit
from upcycle import (
  checkpoints,
  convert,
  depth,
  initialize,
  losses,
  optim,
  surgery,
  trees,
)
from upcycle.checkpoints import slots
from upcycle.models import t5, vit, vit_layers

KEY = jax.random.key(0)
DENSE = dataclasses.replace(
  test_t5.TINY, num_encoder_layers=2, num_decoder_layers=1
)
DEEPER = dataclasses.replace(DENSE, num_encoder_layers=5, num_decoder_layers=2)
LAYERS = {'encoder': (0, 0, 0, 1, 1), 'decoder': (0, 0)}
VIT = dataclasses.replace(test_vit.TINY, depth=2)


@pytest.mark.parametrize(
  'order, old, new, expected',
  [
    (depth.stretched, 3, 6, (0, 0, 1, 1, 2, 2)),
    (depth.stretched, 4, 6, (0, 0, 1, 2, 2, 3)),
    (depth.repeated, 3, 6, (0, 1, 2, 0, 1, 2)),
    (depth.repeated, 3, 5, (0, 1, 2, 0, 1)),
  ],
)
def test_orders(order, old, new, expected):
  assert order(old, new) == expected
  assert order(old, old) == tuple(range(old))


@pytest.mark.parametrize('order', [depth.stretched, depth.repeated])
def test_every_layer_is_used(order):
  for old in range(1, 9):
    for new in range(old, 20):
      layers = order(old, new)
      assert len(layers) == new and set(layers) == set(range(old))


def params(model):
  return jax.jit(lambda: initialize.init_params(model, 0))()


def tiled(model, deeper, order=depth.stretched):
  """Parameters of the dense model, and those made of them."""
  dense = params(model)
  shapes = initialize.param_shapes(deeper)
  return dense, surgery.depth_tile(dense, shapes, order, key=KEY)


@pytest.mark.parametrize('order', [depth.stretched, depth.repeated])
def test_a_tiled_vit_is_its_blocks_one_after_the_other(order):
  deeper = vit.ViT(dataclasses.replace(VIT, depth=5))
  dense, made = tiled(vit.ViT(VIT), deeper, order)
  stack = dense['Transformer']
  block = vit.EncoderBlock(VIT, vit._mlp(VIT, None))

  @jax.jit
  def by_hand(images):
    x = vit_layers.patches(images, VIT.patch_size)
    kernel = dense['embedding']['kernel'].reshape(x.shape[-1], -1)
    x = x @ kernel + dense['embedding']['bias']
    x = x + stack['posembed_input']['pos_embedding']
    for i in order(2, 5):
      variables = {'params': stack[f'encoderblock_{i}']}
      x = block.apply(variables, x, None, True)
    norm = vit_layers.norm(VIT, 'norm')
    return norm.apply({'params': stack['encoder_norm']}, x).mean(1)

  found = test_vit.apply(deeper.features(), made, test_vit.IMAGES)
  np.testing.assert_allclose(found, by_hand(test_vit.IMAGES), atol=1e-5)


@pytest.mark.parametrize('order', [depth.stretched, depth.repeated])
def test_a_tiled_t5_has_the_layers_of_its_stacks(order):
  dense, made = tiled(t5.T5(DENSE), t5.T5(DEEPER), order)
  expected = {'token_embedder': dense['token_embedder']}
  for stack, old, new in (('encoder', 2, 5), ('decoder', 1, 2)):
    shared = {k: x for k, x in dense[stack].items() if 'layers_' not in k}
    assert len(shared) == 2 + (stack == 'decoder')
    expected[stack] = shared | {
      f'layers_{i}': dense[stack][f'layers_{j}']
      for i, j in enumerate(order(old, new))
    }
  trees.check(expected, made, 'tiled', dtypes=True)
  jax.tree.map(np.testing.assert_array_equal, expected, dict(made))


def test_tiled_parameters_are_arrays_of_their_own():
  """Or a training step could not be given all of them to overwrite."""
  _, made = tiled(t5.T5(DENSE), t5.T5(DEEPER))
  leaves = jax.tree.leaves(made)
  assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)


def test_a_shallower_model_is_refused():
  with pytest.raises(ValueError, match='as many layers or more') as error:
    tiled(t5.T5(DEEPER), t5.T5(DENSE))
  for stack in (
    'encoder/layers has 2 layers, 5 in the checkpoint',
    'decoder/layers has 1 layers, 2 in the checkpoint',
  ):
    assert stack in str(error.value)


def test_a_layer_that_an_order_leaves_out_is_refused():
  with pytest.raises(ValueError, match='unused source: encoder/layers_1/'):
    tiled(t5.T5(DENSE), t5.T5(DEEPER), lambda old, new: (0,) * new)


@pytest.fixture(scope='module')
def dense_checkpoint(tmp_path_factory):
  """T5X's, of step 1000, with Adafactor's slots, all different."""
  state = initialize.from_scratch(t5.T5(DENSE), ADAFACTOR, 0)
  rng = np.random.default_rng(0)
  view = jax.tree.map(
    lambda x: rng.uniform(size=x.shape).astype(x.dtype), state.opt_state.slots
  )
  folder = tmp_path_factory.mktemp('dense')
  return str(checkpoints.t5x.write(folder, state.params, 1000, view))


ADAFACTOR = optim.adafactor(0.1)


def start(path, model, **options):
  init = initialize.InitFrom(path, optimizer_state='expand', **options)
  return initialize.from_checkpoint(
    init, model, losses.seq2seq, ADAFACTOR, test_t5.BATCH, 0
  )


def test_a_run_starts_deeper_with_its_optimizers_state(dense_checkpoint):
  state, receipt = start(
    dense_checkpoint, t5.T5(DEEPER), depth_tile=depth.stretched
  )
  source = checkpoints.read(dense_checkpoint)
  for old, new in (
    (source.params, state.params),
    (source.opt_state, slots.get(state.opt_state)),
  ):
    for stack, layers in LAYERS.items():
      for i, j in enumerate(layers):
        jax.tree.map(
          np.testing.assert_array_equal,
          new[stack][f'layers_{i}'],
          old[stack][f'layers_{j}'],
        )
  assert int(state.step) == receipt['step'] == 1000
  made = {f'{stack}/layers': layers for stack, layers in LAYERS.items()}
  assert receipt['depth_tile'] == {'order': 'stretched', 'layers': made}
  origin = receipt['origin']['encoder/layers_4/mlp/wo/kernel']
  assert origin['source'] == 'encoder/layers_1/mlp/wo/kernel'


def test_a_model_may_become_sparse_and_deeper_at_once(dense_checkpoint):
  sparse = dataclasses.replace(
    DEEPER, encoder_moe=test_t5.ENCODER, encoder_moe_layers=(1, 3)
  )
  state, _ = start(dense_checkpoint, t5.T5(sparse), depth_tile=depth.stretched)
  dense = checkpoints.read(dense_checkpoint).params['encoder']
  made = state.params['encoder']
  for i, j in enumerate(LAYERS['encoder']):
    old, new = dense[f'layers_{j}']['mlp'], made[f'layers_{i}']['mlp']
    assert ('expert' in new) == ('router' in new) == (i in (1, 3))
    copies = [new]
    if i in (1, 3):
      copies = [
        jax.tree.map(lambda x, e=e: x[e], new['expert']) for e in (0, 3)
      ]
    for copy in copies:
      jax.tree.map(np.testing.assert_array_equal, copy, old)


def test_without_an_order_a_deeper_model_is_refused(dense_checkpoint):
  with pytest.raises(ValueError, match='missing source') as error:
    start(dense_checkpoint, t5.T5(DEEPER))
  assert 'InitFrom.depth_tile = @depth.stretched' in str(error.value)


def test_files_are_tiled_too(dense_checkpoint, tmp_path):
  model = t5.T5(DEEPER)
  convert.convert(model, dense_checkpoint, tmp_path, depth_tile=depth.repeated)
  made = checkpoints.read(tmp_path)
  source = checkpoints.read(dense_checkpoint)
  shapes = initialize.param_shapes(model)
  want = surgery.depth_tile(source.params, shapes, depth.repeated, key=KEY)
  for path, leaf in trees.flatten(want).items():
    assert isinstance(leaf, trees.LazyArray)
    np.testing.assert_array_equal(leaf, trees.flatten(made.params)[path])
  receipt = json.loads((tmp_path / 'receipt.json').read_text())
  assert receipt['depth_tile']['layers']['encoder/layers'] == [0, 1, 0, 1, 0]
