# SPDX-License-Identifier: Apache-2.0
"""Weights in few bits: how far off, of which parameters, and how large."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import test_evaluate_checkpoint as tiny
from tests import tiny_vit_runs
from tests.conftest import GOLDEN, golden
from upcycle import (
  checkpoints,
  evaluate,
  evaluate_checkpoint,
  initialize,
  losses,
  quantize,
  trees,
)
from upcycle.models import moe, t5, vit

EXPERTS = moe.MoeConfig(num_experts=4)


def t5_model():
  """The small model of Hugging Face, its batch and its parameters."""
  arrays, _ = golden('hf_t5_v1_1')
  source = checkpoints.read(GOLDEN / 'hf_t5_v1_1')
  batch = {
    k.removeprefix('batch/'): v for k, v in arrays.items() if 'batch/' in k
  }
  weights = (batch['decoder_target_tokens'] > 0).astype(np.float32)
  batch['decoder_loss_weights'] = weights
  model = t5.T5(t5.T5Config(**source.metadata['model'], encoder_moe=EXPERTS))
  params = initialize.upcycled(source.params, model, seed=0)
  return (
    model,
    jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params),
    batch,
  )


def vit_shapes():
  sizes = tiny_vit_runs.SIZES | {'image_size': 8, 'pool_type': 'map'}
  model = vit.ViT(vit.ViTConfig(**sizes, moe=EXPERTS))
  return initialize.param_shapes(model)


@pytest.mark.parametrize(
  ('path', 'shape', 'scale'),
  [
    ('encoder/layers_1/mlp/expert/wi_0/kernel', (4, 6, 8), (4, 1, 8)),
    ('encoder/layers_0/mlp/wo/kernel', (8, 6), (1, 6)),
    ('encoder/layers_0/attention/query/kernel', (6, 8), (1, 8)),
    ('token_embedder/embedding', (9, 6), (9, 1)),
    ('embedding/kernel', (2, 2, 3, 6), (1, 1, 1, 6)),
    ('Transformer/x/query/kernel', (6, 2, 3), (1, 2, 3)),
    ('Transformer/x/out/kernel', (2, 3, 6), (1, 1, 6)),
    ('Transformer/x/Moe/Mlp/Dense_1/kernel', (4, 8, 6), (4, 1, 6)),
  ],
)
def test_no_number_is_off_by_more_than_half_a_step(path, shape, scale):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  x *= 10.0 ** np.arange(shape[-1])  # channels of very different size
  x.reshape(-1)[0] = 0
  found = quantize.leaf(path, jnp.asarray(x), 'int8')
  assert (found.values.dtype, found.scale.shape) == (jnp.int8, scale)
  restored = quantize.dequantize({'x': found})['x']
  # And the rounding of the division and the product.
  assert np.all(np.abs(restored - x) <= found.scale * 0.50001)
  assert np.abs(found.values).max() == 127


def test_a_channel_of_zeros_stays_so():
  with jax.disable_jit(), jax.debug_nans(True):
    found = quantize.quantize({'head': {'kernel': jnp.zeros((4, 5))}}, 'int8')
  restored = quantize.dequantize(found)
  np.testing.assert_array_equal(restored['head']['kernel'], 0)


@pytest.mark.parametrize('shapes', ['t5', 'vit'])
def test_what_is_small_or_routes_stays_float32(shapes):
  if shapes == 't5':
    shapes = initialize.param_shapes(t5_model()[0])
  else:
    shapes = vit_shapes()
  found = jax.eval_shape(lambda x: quantize.quantize(x, 'int8'), shapes)
  kept = {
    path: x
    for path, x in trees.flatten(found).items()
    if not isinstance(x, quantize.Quantized)
  }
  words = 'bias', 'scale', 'probe', 'pos_embedding', 'rel_embedding'
  for path, x in kept.items():
    assert '/router/' in path.lower() or path.endswith(words), path
    assert x.dtype == jnp.float32
  assert any('/router/' in p.lower() for p in kept)
  assert any(p.endswith('scale') for p in kept)


def loss_and_sizes(weights):
  """The loss, bytes of parameters, and of what the compiled step takes."""
  model, params, batch = t5_model()
  params = quantize.quantize(params, weights)
  step = evaluate.make_eval_step(quantize.Model(model), losses.seq2seq)
  sums = step(params, batch)
  memory = step.lower(params, batch).compile().memory_analysis()
  sizes = quantize.nbytes(params), memory.argument_size_in_bytes
  return float(sums['loss'] / sums['weight']), np.array(sizes)


def test_the_loss_barely_changes_and_memory_is_a_quarter():
  exact, whole = loss_and_sizes('float32')
  for weights, bound, share in (('bfloat16', 3e-3, 0.5), ('int8', 1e-2, 0.25)):
    loss, sizes = loss_and_sizes(weights)
    assert 0 < abs(loss - exact) < bound, weights
    # The scales, and what stays float32.
    shares = sizes / whole
    assert (share < shares).all() and (shares < share + 0.1).all(), weights


def test_unknown_weights_are_refused():
  with pytest.raises(ValueError, match="or int8, not 'int4'"):
    quantize.quantize({'x': jnp.ones(3)}, 'int4')


def test_features_take_them_too(tmp_path):
  """As few-shot evaluation uses a model."""
  run = tiny_vit_runs.save(tmp_path / 'run', tiny.CONFIG)
  source, model = checkpoints.read(run), vit.ViT(tiny.CONFIG)
  params = evaluate_checkpoint.parameters(source, model, 'int8')
  images = jnp.asarray(tiny.batches(1)[0]['images'])
  features = quantize.Model(model).features()
  assert features.config.num_classes is None
  found = features.apply({'params': params}, images)
  exact = model.features().apply(
    {'params': evaluate_checkpoint.parameters(source, model)}, images
  )
  assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
