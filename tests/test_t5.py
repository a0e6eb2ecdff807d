# SPDX-License-Identifier: Apache-2.0
"""T5: against T5X and Hugging Face, and what a user may rely on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import GOLDEN, golden
from upcycle import checkpoints, initialize, losses, routing, trees
from upcycle.models import moe, t5

T5X, _ = golden('t5x_tiny_model')
BATCH = {
  k.removeprefix('batch/'): jnp.asarray(v)
  for k, v in T5X.items()
  if k.startswith('batch/')
}
TINY = t5.T5Config(
  vocab_size=128,
  emb_dim=32,
  num_heads=4,
  head_dim=8,
  mlp_dim=64,
  num_encoder_layers=4,
  num_decoder_layers=4,
)
# The reference run's setting: it routes padding, and its decoder serves all
# first choices before any second one.
ENCODER = moe.MoeConfig(
  num_experts=4,
  group_size=16,
  group_multiple=4,
  min_capacity=4,
  ignore_padding=False,
)
DECODER = dataclasses.replace(
  ENCODER,
  router=functools.partial(routing.top_k, priority='choice'),
  aux_weights=(('load_balance', 0.01),),
)
SPARSE = dataclasses.replace(
  TINY,
  encoder_moe=ENCODER,
  decoder_moe=DECODER,
  encoder_moe_layers=(1, 3),
  decoder_moe_layers=(1, 3),
)
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def subtree(prefix):
  return trees.unflatten(
    {k.removeprefix(prefix): v for k, v in T5X.items() if k.startswith(prefix)}
  )


def params_of(name):
  if name == 'dense':
    path = GOLDEN / 't5x_tiny_dense_checkpoint'
    return _arrays(checkpoints.read(path).params)
  return subtree(f'{name}/params/')


def _arrays(tree):
  return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def objective(model, params, batch):
  """Mean loss, as T5X reports it, with (metrics, logits)."""
  seen = {}

  def apply(**inputs):
    seen['logits'], seen['sown'] = model.apply(
      {'params': params}, **inputs, mutable=['losses', 'metrics']
    )
    return seen['logits']

  sums = losses.seq2seq(apply, batch)
  aux = losses.auxiliary(seen['sown'].get('losses', {}))
  # T5X means the load-balance loss over all MoE layers, half of which have
  # none here; ours over those that have one.
  total = (sums['loss'] + sums['z_loss']) / sums['weight']
  total += 0.5 * aux.get('load_balance', 0.0)
  return total, (sums, seen)


@pytest.mark.parametrize(
  'name, config', [('dense', TINY), ('moe_ec_tc', SPARSE)]
)
def test_agrees_with_t5x(name, config):
  model = t5.T5(config)
  params = params_of(name)
  trees.check(initialize.param_shapes(model), params, 'T5X names', dtypes=True)
  step = jax.jit(
    jax.value_and_grad(objective, 1, has_aux=True), static_argnums=0
  )
  (total, (sums, seen)), grads = step(model, params, BATCH)
  close(seen['logits'], T5X[f'{name}/logits'])
  close(total, T5X[f'{name}/loss'])
  close(
    (sums['loss'] + sums['z_loss']) / sums['weight'],
    T5X[f'{name}/metrics/cross_ent_loss'] + T5X[f'{name}/metrics/z_loss'],
  )
  for path, grad in trees.flatten(grads).items():
    close(grad, T5X[f'{name}/grads/{path}'], err_msg=path)
  layers = losses.sown(seen['sown'].get('metrics', {}))
  for layer in {key.rsplit('/', 1)[0] for key in layers}:
    golden_layer = f'{name}/intermediates/{layer}'
    close(
      1 - layers[f'{layer}/coverage'],
      T5X[f'{golden_layer}/fraction_tokens_left_behind'],
    )
    for ours, theirs in (
      ('z', 'router_z_loss'),
      ('confidence', 'router_confidence'),
      ('usage', 'expert_usage'),
    ):
      close(layers[f'{layer}/{ours}'], T5X[f'{golden_layer}/{theirs}'])


@pytest.mark.parametrize('version', ['v1_0', 'v1_1'])
def test_agrees_with_hugging_face(version):
  arrays, _ = golden(f'hf_t5_{version}')
  checkpoint = checkpoints.read(GOLDEN / f'hf_t5_{version}')
  model = t5.T5(t5.T5Config(**checkpoint.metadata['model']))
  batch = {
    k.removeprefix('batch/'): jnp.asarray(v)
    for k, v in arrays.items()
    if k.startswith('batch/')
  }
  targets = batch['decoder_target_tokens']
  batch['decoder_loss_weights'] = (targets > 0).astype(np.float32)
  params = _arrays(checkpoint.params)

  def run(params):
    seen = {}

    def apply(**inputs):
      # Without targets: a user who decodes has none.
      inputs.pop('decoder_target_tokens')
      seen['logits'] = model.apply({'params': params}, **inputs)
      return seen['logits']

    sums = losses.seq2seq(apply, batch, z_loss=0.0)
    return sums['loss'] / sums['weight'], seen['logits']

  (loss, logits), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
  close(logits[targets > 0], arrays['logits'][targets > 0])
  close(loss, arrays['loss'])
  grads = trees.flatten(grads)
  for key, value in arrays.items():
    if key.startswith('grads/'):
      close(grads[key.removeprefix('grads/')], value, err_msg=key)


# Table of parameters: T5X's models, and the paper's with 32 experts.
PARAMETERS = {
  't5_1_1_small': (76.96e6, 467.2e6),
  't5_1_1_base': (247.6e6, 2.003e9),
  't5_1_1_large': (783.2e6, 7.220e9),
  't5_1_1_xl': (2849.8e6, 26.256e9),
}


@pytest.mark.parametrize('name', PARAMETERS)
def test_presets_have_the_published_sizes(name):
  def count(config):
    shapes = initialize.param_shapes(t5.T5(config))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))

  top_2 = moe.MoeConfig(router=routing.top_k)
  sparse = t5.preset(name, encoder_moe=moe.MoeConfig(), decoder_moe=top_2)
  dense, upcycled = PARAMETERS[name]
  assert count(t5.preset(name)) == pytest.approx(dense, rel=1e-3)
  assert count(sparse) == pytest.approx(upcycled, rel=1e-3)


@functools.cache
def small():
  """A sparse model with its initial parameters, and a batch of two examples."""
  top_2 = moe.MoeConfig(
    num_experts=4, router=routing.top_k, capacity_factor=4.0
  )
  config = dataclasses.replace(
    TINY,
    num_encoder_layers=2,
    num_decoder_layers=2,
    encoder_moe=moe.MoeConfig(num_experts=4, capacity_factor=4.0),
    decoder_moe=top_2,
    encoder_moe_layers=(1,),
    decoder_moe_layers=(1,),
  )
  rng = np.random.RandomState(0)
  inputs = rng.randint(2, 128, (2, 7)).astype(np.int32)
  targets = rng.randint(2, 128, (2, 5)).astype(np.int32)
  batch = {
    'encoder_input_tokens': inputs,
    'decoder_input_tokens': np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    'decoder_target_tokens': targets,
  }
  batch = {k: jnp.asarray(v) for k, v in batch.items()}
  params = jax.jit(t5.T5(config).init)(jax.random.key(0), **batch)['params']
  return config, params, batch


@functools.partial(jax.jit, static_argnums=0)
def apply(config, params, **inputs):
  return t5.T5(config).apply({'params': params}, **inputs)


def test_packed_rows_equal_separate_ones():
  """Two examples in one row, as long as nothing overflows."""
  config, params, batch = small()
  packed = {k: v.reshape(1, -1) for k, v in batch.items()}
  for side, length in (('encoder', 7), ('decoder', 5)):
    packed[f'{side}_segment_ids'] = np.repeat([[1, 2]], length, 1)
    packed[f'{side}_positions'] = np.tile(np.arange(length), (1, 2))
  together = apply(config, params, **packed)
  close(together.reshape(2, 5, -1), apply(config, params, **batch))


def test_padding_changes_nothing():
  config, params, batch = small()
  padded = {k: np.pad(v, ((0, 1), (0, 3))) for k, v in batch.items()}
  logits = apply(config, params, **padded)
  close(logits[:2, :5], apply(config, params, **batch))


def test_no_logit_depends_on_a_later_token():
  """With experts that overflow, through the whole decoder."""
  config, params, batch = small()
  tight = dataclasses.replace(config.decoder_moe, capacity_factor=0.5)
  config = dataclasses.replace(config, decoder_moe=tight)
  params = jax.tree.map(lambda p: p, params)
  router = params['decoder']['layers_1']['mlp']['router']['router_weights']['w']
  router['kernel'] = 50 * router['kernel']
  first = apply(config, params, **batch)
  for t in range(1, 5):
    tokens = batch['decoder_input_tokens']
    changed = tokens.at[:, t:].set(127 - tokens[:, t:])
    second = apply(config, params, **batch | {'decoder_input_tokens': changed})
    # The second row shares its experts with the first one's later tokens.
    np.testing.assert_array_equal(first[0, :t], second[0, :t])
    assert np.abs(first[:, t:] - second[:, t:]).max() > 1e-3


def test_remat_changes_nothing():
  config, params, batch = small()
  batch = batch | {'decoder_loss_weights': np.ones((2, 5), np.float32)}
  grads = []
  for remat in (False, True):
    model = t5.T5(dataclasses.replace(config, remat=remat))
    step = jax.grad(objective, 1, has_aux=True)
    grads.append(jax.jit(step, static_argnums=0)(model, params, batch)[0])
  jax.tree.map(functools.partial(close, rtol=1e-5), *grads)


def test_bfloat16_computes_close_by_with_float32_parameters():
  config, params, batch = small()
  low = dataclasses.replace(config, dtype='bfloat16')
  logits = apply(low, params, **batch)
  assert logits.dtype == jnp.float32
  assert np.abs(logits - apply(config, params, **batch)).max() < 0.3
  shapes = jax.eval_shape(t5.T5(low).init, jax.random.key(0), **batch)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes))


def test_dropout_only_in_training():
  config, params, batch = small()
  config = dataclasses.replace(config, dropout_rate=0.5)
  run = jax.jit(
    lambda key: t5.T5(config).apply(
      {'params': params}, **batch, deterministic=False, rngs={'dropout': key}
    )
  )
  first, second = (run(jax.random.key(i)) for i in range(2))
  assert np.abs(first - second).max() > 1e-2
  without = dataclasses.replace(config, dropout_rate=0.0)
  close(apply(config, params, **batch), apply(without, params, **batch))


def test_expert_numbers_by_layer():
  config = dataclasses.replace(
    TINY,
    encoder_moe=moe.MoeConfig(num_experts=(2, 4)),
    encoder_moe_layers=(2, 3),
  )
  shapes = initialize.param_shapes(t5.T5(config))
  experts = [
    shapes['encoder'][f'layers_{i}']['mlp']['expert']['wo']['kernel'].shape[0]
    for i in (2, 3)
  ]
  assert experts == [2, 4]


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: t5.preset('t5_huge'), 't5_1_1_base'),
    (lambda: t5.preset('t5_1_1_base', d_model=3), 'emb_dim'),
    (
      lambda: dataclasses.replace(TINY, decoder_moe=moe.MoeConfig()),
      'Expert Choice cannot route a causal stack',
    ),
    (
      lambda: t5.T5(TINY).init(
        jax.random.key(0),
        BATCH['encoder_input_tokens'],
        BATCH['decoder_input_tokens'],
        encoder_segment_ids=BATCH['encoder_input_tokens'],
      ),
      'both sides',
    ),
  ],
)
def test_refuses(make, message):
  with pytest.raises(ValueError, match=message):
    make()
