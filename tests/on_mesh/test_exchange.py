# SPDX-License-Identifier: Apache-2.0
"""Whatever the mesh and the exchange, an MoE layer gives the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.on_mesh import meshes
from upcycle import exchange, experts, partition, routing
from upcycle.models import mlp, moe

E, M, F, B, L = 8, 16, 48, 8, 31
EXCHANGES = {
  'flat': exchange.flat,
  'hierarchical': functools.partial(exchange.hierarchical, nodes=2),
  'pipelined': functools.partial(exchange.pipelined, chunks=3),
  'gather_weights': exchange.gather_weights,
  'adaptive': exchange.adaptive,
}
ROUTERS = {
  'expert_choice': routing.expert_choice,
  'top_2': functools.partial(routing.top_k, k=2),
}
X = jax.random.normal(jax.random.key(2), (B, L, M))
# Ragged at its end, and 31 tokens a row fill no group: groups are padded.
MASK = jnp.arange(L) < jnp.array([31, 31, 20, 31, 0, 31, 1, 31])[:, None]


def layer(exchange_, router, dropout=0.0, broadcast=True):
  config = moe.MoeConfig(
    num_experts=E,
    router=router,
    group_size=32,
    group_multiple=8,
    exchange=exchange_,
    expert_dropout=dropout,
    aux_weights=(('z', 0.1),),
  )

  def expert(rate, name=None):
    return mlp.Mlp(
      F,
      ('gelu', 'linear'),
      rate,
      use_bias=True,
      broadcast_dropout=broadcast,
      name=name,
    )

  return moe.MoeLayer(config, expert)


@functools.cache  # none of them depends on what differs between layers
def parameters():
  module = layer(exchange.flat, routing.expert_choice)
  return jax.jit(module.init)(jax.random.key(0), X[:1, :1])['params']


def compiled(module, mesh, backward=True):
  """The program of loss, output and gradients, and its arguments."""
  params = parameters()
  with jax.set_mesh(mesh):
    places = partition.shardings({'encoder': {'mlp': params}})
    params = jax.device_put(params, places['encoder']['mlp'])
    x = partition.put_batch({'x': X})['x']

    def loss(params, x):
      y, sown = module.apply(
        {'params': params},
        x,
        MASK,
        not module.config.expert_dropout,
        rngs={'dropout': jax.random.key(1)},
        mutable=['losses'],
      )
      return jnp.sum(jnp.sin(y)) + sum(jax.tree.leaves(sown)), y

    grad = jax.value_and_grad(loss, (0, 1), has_aux=True) if backward else loss
    return jax.jit(grad).lower(params, x).compile(), (params, x)


def values(module, shape):
  program, arguments = compiled(module, meshes.make(shape, (E,)))
  return jax.device_get(program(*arguments)), program.as_text()


def agree(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5 * np.abs(x).max())


@pytest.mark.parametrize('router', ROUTERS)
def test_values_and_gradients_do_not_depend_on_the_mesh(router):
  module = layer(exchange.flat, ROUTERS[router])
  expected, _ = values(module, (1, 1, 1))
  for shape in (*meshes.SHAPES[1:], (1, 1, 2)):
    agree(values(module, shape)[0], expected)


@pytest.mark.parametrize('shape', [(2, 4, 1), (2, 2, 2)])
@pytest.mark.parametrize(
  'name', ['hierarchical', 'pipelined', 'gather_weights']
)
def test_exchanges_give_the_same(name, shape):
  expected, _ = values(layer(exchange.flat, routing.top_k), (1, 1, 1))
  agree(values(layer(EXCHANGES[name], routing.top_k), shape)[0], expected)


@pytest.mark.parametrize(
  'name, broadcast',
  [
    ('flat', False),
    ('pipelined', False),
    ('gather_weights', True),
    ('gather_weights', False),
  ],
)
def test_dropout_does_not_depend_on_the_mesh(name, broadcast):
  module = layer(EXCHANGES[name], routing.expert_choice, 0.3, broadcast)
  expected, _ = values(module, (1, 1, 1))
  without, _ = values(layer(exchange.flat, routing.expert_choice), (1, 1, 1))
  assert np.abs(expected[0][1] - without[0][1]).max() > 0.01
  agree(values(module, (2, 2, 2))[0], expected)


@pytest.mark.parametrize('shape', [s for s in meshes.SHAPES if s[1] > 1])
@pytest.mark.parametrize('router', ROUTERS)
def test_two_all_to_alls_forward_and_four_with_backward(router, shape):
  module, mesh = layer(exchange.flat, ROUTERS[router]), meshes.make(shape)
  for backward, count in ((False, 2), (True, 4)):
    program, _ = compiled(module, mesh, backward)
    found = meshes.collectives(program.as_text())
    assert len(found['all-to-all']) == count
    assert not found['all-gather'] + found['reduce-scatter']


def test_without_an_expert_axis_nothing_travels():
  module = layer(exchange.flat, routing.expert_choice)
  _, text = values(module, (8, 1, 1))
  assert not meshes.collectives(text)['all-to-all']


def test_hierarchical_sends_fewer_and_larger_messages_between_nodes():
  """Two nodes of four devices."""

  def messages(module):
    program, _ = compiled(module, meshes.make((1, 8, 1)), backward=False)
    found = meshes.collectives(program.as_text())['all-to-all']
    return [set(collective.groups) for collective in found]

  flat = messages(layer(exchange.flat, routing.expert_choice))
  nested = messages(layer(EXCHANGES['hierarchical'], routing.expert_choice))
  everyone, inside = {tuple(range(8))}, {(0, 1, 2, 3), (4, 5, 6, 7)}
  across = {(0, 4), (1, 5), (2, 6), (3, 7)}
  assert flat == [everyone] * 2
  assert nested == [inside, across] * 2
  # A device's messages out of its node, and the share of its slots in each.
  assert [_between_nodes(g) for g in flat[:1]] == [(4, 1 / 8)]
  assert [_between_nodes(g) for g in nested[:2]] == [(0, 1 / 4), (1, 1 / 2)]


def _between_nodes(groups):
  mine = next(group for group in groups if 0 in group)
  return sum(device >= 4 for device in mine), 1 / len(mine)


def test_pipelined_exchanges_every_chunk():
  program, _ = compiled(
    layer(EXCHANGES['pipelined'], routing.expert_choice), meshes.make((2, 4, 1))
  )
  assert len(meshes.collectives(program.as_text())['all-to-all']) == 3 * 4


def test_gather_weights_moves_no_tokens():
  module = layer(exchange.gather_weights, routing.expert_choice)
  program, _ = compiled(module, meshes.make((2, 4, 1)))
  found = meshes.collectives(program.as_text())
  assert not found['all-to-all'] and found['reduce-scatter']
  kernel = np.float32().nbytes * E * M * F
  assert kernel in {gathered.bytes for gathered in found['all-gather']}


def test_adaptive_takes_what_moves_fewer_bytes():
  """Of 8 groups of 32 tokens, or of many more."""
  module = layer(exchange.adaptive, routing.expert_choice)
  mesh = meshes.make((1, 8, 1), (E,))

  def moves_tokens(tokens):
    with jax.set_mesh(mesh):
      x = jnp.zeros((8, tokens, M))
      params = jax.eval_shape(module.init, jax.random.key(0), x[:1, :1])
      run = jax.jit(module.apply).lower(params, x).compile()
    return bool(meshes.collectives(run.as_text())['all-to-all'])

  assert moves_tokens(32) and not moves_tokens(3200)


def test_adaptive_counts_bytes_and_not_numbers(monkeypatch):
  """Of 3 numbers of weights for 2 of slots, which go there and back."""
  monkeypatch.setattr(exchange, 'flat', lambda run, mlp, x, keep: 0 * x)
  monkeypatch.setattr(
    exchange, 'gather_weights', lambda run, mlp, x, keep: 0 * x + 1
  )
  params = experts.Mlp((jnp.zeros((2, 4, 6)),), (), jnp.zeros((2, 6, 4)), None)

  def gathers(dtype):
    slots = jnp.zeros((1, 2, 8, 4), dtype)
    return bool(exchange.adaptive(jnp.dot, params, slots, None).all())

  assert gathers(jnp.float32) and not gathers(jnp.bfloat16)


def test_groups_and_experts_that_cannot_be_shared():
  mesh = meshes.make((1, 8, 1))

  def apply(G, E):
    params = experts.Mlp(
      (jnp.zeros((E, M, F)),), (), jnp.zeros((E, F, M)), None
    )
    slots = jnp.zeros((G, E, 1))
    with jax.set_mesh(mesh):
      x = jnp.zeros((G, 4, M))
      exchange.apply(
        exchange.flat, jnp.tanh, params, x, jnp.int32(slots), slots
      )

  with pytest.raises(ValueError, match='6 experts'):
    apply(8, 6)
  with pytest.raises(ValueError, match='3 groups'):
    apply(3, 8)
  module = layer(EXCHANGES['hierarchical'], routing.expert_choice)
  with pytest.raises(ValueError, match='2 nodes do not divide'):
    values(module, (8, 1, 1))


def test_dropless_is_refused():
  with pytest.raises(ValueError, match='several devices cannot share them'):
    values(layer(exchange.flat, routing.dropless), (8, 1, 1))
