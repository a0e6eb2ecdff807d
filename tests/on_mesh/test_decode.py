# SPDX-License-Identifier: Apache-2.0
"""Decoding on meshes: the same tokens, from caches that are spread."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_runs
from tests.on_mesh import meshes
from upcycle import decode, initialize, partition, routing
from upcycle.models import moe, t5

E, LENGTH = 8, 6
INPUTS = np.random.default_rng(0).integers(2, 96, (16, 9)).astype(np.int32)
# Each row is a group: the encoder depends on what is routed together.
SPARSE = functools.partial(moe.MoeConfig, E, router_std=1.0, group_size=None)
MODEL = t5.T5(
  t5.preset(
    't5_1_1_small',
    **tiny_runs.SIZES | {'num_encoder_layers': 1, 'num_decoder_layers': 1},
    vocab_size=96,
    encoder_moe=SPARSE(),
    encoder_moe_layers=(0,),
    decoder_moe=SPARSE(router=routing.top_k),
    decoder_moe_layers=(0,),
  )
)


@functools.cache
def parameters():
  params = jax.jit(initialize.init_params, static_argnums=(0, 1))(MODEL, 0)
  params['token_embedder']['embedding'] *= 3
  return jax.tree.map(np.asarray, params)


def on(shape, strategy):
  """What a mesh generates for all rows but the last."""
  with jax.set_mesh(meshes.make(shape, MODEL.num_experts())):
    params = jax.tree.map(
      partition.put, parameters(), partition.shardings(parameters())
    )
    return decode.on_mesh(
      *(MODEL, params, INPUTS[:15]), strategy=strategy, max_length=LENGTH
    )


@pytest.mark.parametrize('strategy', [decode.GREEDY, decode.Beam(2)])
def test_a_mesh_generates_what_one_device_does(strategy):
  one = on((1, 1, 1), strategy)
  assert len(np.unique(one.tokens)) > 5
  for shape in ((2, 4, 1), (2, 2, 2)):
    decoded = on(shape, strategy)
    np.testing.assert_array_equal(decoded.tokens, one.tokens)
    np.testing.assert_allclose(decoded.scores, one.scores, rtol=1e-4)


def test_caches_are_spread_over_rows_and_heads():
  with jax.set_mesh(meshes.make((2, 2, 2), MODEL.num_experts())):
    params = jax.tree.map(
      partition.put, parameters(), partition.shardings(parameters())
    )
    serving, variables = MODEL.serving(), {'params': params}
    inputs = partition.put(INPUTS, partition.over_rows())
    start = partition.put(np.zeros(16, np.int32), partition.over_rows())
    encoded = serving.apply(variables, inputs, method='encode')

    @jax.jit
    def step(cache, encoded):
      return serving.apply(
        *(variables | cache, start, jnp.int32(0), inputs > 0, encoded),
        max_length=LENGTH,
        method='step',
        mutable=['cache', 'memory'],
      )[1]

    cache = step(step({}, encoded), None)
  kept = {
    jax.tree_util.keystr(path): x.sharding.shard_shape(x.shape)
    for path, x in jax.tree_util.tree_leaves_with_path(cache)
  }
  assert len(kept) == 4  # keys and values, of both kinds of attention
  for path, shape in kept.items():
    K = LENGTH if 'self_attention' in path else 9
    assert shape == (4, K, 1, 8), path
