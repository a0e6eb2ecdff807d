# SPDX-License-Identifier: Apache-2.0
"""The MoE layer: against T5X's, against the one-hot form, and alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import golden
from tests.test_routing import CAUSAL, ROUTERS
from upcycle import dispatch, routing, trees
from upcycle.models import moe
from upcycle.models.mlp import Mlp

T5X, META = golden('t5x_moe_layer')
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def layer(config, activations=('gelu', 'linear'), mlp_dim=32, causal=False):
  def expert(dropout_rate, name):
    return Mlp(mlp_dim, activations, dropout_rate, name=name)

  return moe.MoeLayer(config, expert, causal)


def config_of(case):
  """The config of a golden case; `pad1` routes no padding."""
  name = case['kind']
  router = routing.expert_choice
  if name != 'ec':
    router = functools.partial(
      routing.top_k,
      k=case['top_k'],
      batch_priority=case['bpr'],
      priority='choice',
    )
  return moe.MoeConfig(
    num_experts=4,
    router=router,
    capacity_factor=case['capacity_factor'],
    min_capacity=case['min_expert_capacity'],
    group_size=case['max_group_size'],
    group_multiple=4,
    ignore_padding=case['ignore_padding_tokens'],
  )


def t5x_losses(routed, mask, ignore, E):
  """T5X's (auxiliary, z): with padding ignored, it still counts in the means.

  Ours are means over real tokens. T5X's f and p are shares of all S tokens of
  a group, and padding has logits 0 in its z.
  """
  aux = routed.aux.get('load_balance', jnp.float32(0))
  if not ignore:
    return aux, routed.aux['z']
  share = mask.mean()
  padding = (1 - share) * np.log(E) ** 2
  return aux * share**2, routed.aux['z'] * share + padding


@pytest.mark.parametrize(
  'name', sorted(n for n in META if f'{n}/outputs' in T5X)
)
def test_agrees_with_t5x(name):
  case = META[name]
  inputs = T5X[f'inputs/{case["inputs"]}']
  B, L, M = inputs.shape
  # T5X pads batches to a multiple of the experts with rows of zeros, which it
  # routes like tokens; here groups are padded instead, with masked tokens.
  padded = np.zeros((*case['padded_shape'], M), np.float32)
  padded[:B, :L] = inputs
  mask = jnp.asarray(np.abs(padded).sum(-1) > 0)
  kind = name.split('.')[0]
  prefix = f'params/{kind}/'
  flat = {
    k.removeprefix(prefix): v for k, v in T5X.items() if k.startswith(prefix)
  }
  config = config_of(case)
  assert moe.group_shape(*padded.shape[:2], config) == (
    case['num_groups'],
    case['tokens_per_group'],
  )
  module = layer(config, tuple(case['acts']))
  cotangent = np.zeros_like(padded)
  cotangent[:B, :L] = T5X[f'cotangent/{case["inputs"]}']

  def run(x, params):
    routed = {}

    def recording(*args, room=None, **kwargs):
      del room  # T5X counts padding in the capacity, though it takes no slot
      routed['it'] = config.router(*args, **kwargs)
      return routed['it']

    spy = layer(
      dataclasses.replace(config, router=recording), tuple(case['acts'])
    )
    y = spy.apply({'params': params}, x, mask)
    aux, z = t5x_losses(
      routed['it'], mask, config.ignore_padding, config.num_experts
    )
    metrics = {
      'auxiliary_loss': aux,
      'router_z_loss': z,
      'fraction_tokens_left_behind': 1 - routed['it'].metrics['coverage'],
      'router_confidence': routed['it'].metrics['confidence'],
      'expert_usage': routed['it'].metrics['usage'],
    }
    total = jnp.sum(y * cotangent) + 0.01 * aux + 0.001 * z
    return total, (y, metrics)

  params = trees.unflatten(flat)
  shapes = jax.eval_shape(module.init, jax.random.key(0), padded)['params']
  trees.check(shapes, params, 'T5X names')
  (_, (y, metrics)), grads = jax.jit(
    jax.value_and_grad(run, (0, 1), has_aux=True)
  )(padded, params)
  close(y[:B, :L], T5X[f'{name}/outputs'])
  for key, value in metrics.items():
    golden_value = T5X[f'{name}/metrics/{key}']
    close(value, golden_value, err_msg=key)
  close(grads[0][:B, :L], T5X[f'{name}/grad/inputs'])
  for path, grad in trees.flatten(grads[1]).items():
    if f'{name}/grad/{path}' in T5X:
      close(grad, T5X[f'{name}/grad/{path}'], err_msg=path)


# Those that fill slots.
SLOTS = {k: v for k, v in ROUTERS.items() if not k.startswith('dropless')}


@pytest.mark.parametrize('router', SLOTS.values(), ids=SLOTS.keys())
def test_dispatch_equals_the_onehot_form(router):
  G, S, E, M = 2, 11, 4, 3
  rng = np.random.RandomState(0)
  x = jnp.asarray(rng.randn(G, S, M), jnp.float32)
  logits = jnp.asarray(rng.randn(G, S, E), jnp.float32)
  mask = jnp.asarray(rng.rand(G, S) > 0.3)
  scale = jnp.arange(1.0, E + 1)[:, None, None]

  def by_index(x, logits):
    routed = router(logits, 4, mask=mask)
    y = scale * dispatch.dispatch(x, routed.token) ** 2
    return dispatch.combine(y, routed.token, routed.weight, S)

  def by_onehot(x, logits):
    masks = router(logits, 4, mask=mask).masks(S)
    y = scale * dispatch.dispatch_onehot(x, masks[0]) ** 2
    return dispatch.combine_onehot(y, masks[1])

  results = [
    jax.jit(jax.value_and_grad(lambda *a, f=f: jnp.sum(f(*a) ** 3), (0, 1)))(
      x, logits
    )
    for f in (by_index, by_onehot)
  ]
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5),
    *results,
  )


def upcycled(config, x, key=0):
  """(dense output, sparse output, metrics) with experts that are copies."""
  mlp = Mlp(32, ('gelu', 'linear'))
  dense = mlp.init(jax.random.key(key), x)['params']
  module = layer(config)
  params = jax.jit(module.init)(jax.random.key(key + 1), x)['params']
  params['expert'] = jax.tree.map(
    lambda p: jnp.broadcast_to(p, (config.num_experts, *p.shape)), dense
  )
  apply = jax.jit(functools.partial(module.apply, mutable=['metrics']))
  y, sown = apply({'params': params}, x)
  return mlp.apply({'params': dense}, x), y, sown['metrics']


@pytest.mark.parametrize('experts', [1, 3, 4])
def test_full_capacity_equals_dense(experts):
  x = jax.random.normal(jax.random.key(0), (3, 7, 16))
  config = moe.MoeConfig(
    num_experts=experts, capacity_factor=float(experts), router_std=1.0
  )
  dense, sparse, _ = upcycled(config, x)
  np.testing.assert_allclose(dense, sparse, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('router', ROUTERS.values(), ids=ROUTERS.keys())
def test_renormalized_equals_dense_where_routed(router):
  x = jax.random.normal(jax.random.key(0), (3, 8, 16))
  config = moe.MoeConfig(
    num_experts=4,
    router=functools.partial(router, renormalize=True),
    capacity_factor=1.0,
    router_std=1.0,
  )
  dense, sparse, metrics = upcycled(config, x)
  routed = np.abs(np.asarray(sparse)).sum(-1) > 0
  assert routed.mean() == pytest.approx(float(metrics['coverage'][0]))
  np.testing.assert_allclose(
    sparse[routed], dense[routed], rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize('name', ['expert_choice', 'top_2', 'dropless'])
def test_padding_and_rows_that_fill_up_change_nothing(name):
  """Where all that a batch has is one group, whose experts overflow."""
  router = ROUTERS[name]
  config = moe.MoeConfig(
    num_experts=4, router=router, capacity_factor=1.0, router_std=1.0
  )
  module, x = layer(config), jax.random.normal(jax.random.key(0), (3, 9, 16))
  params = jax.jit(module.init)(jax.random.key(1), x)['params']
  apply = jax.jit(functools.partial(module.apply, mutable=['metrics']))
  y, sown = apply({'params': params}, x, jnp.ones((3, 9), bool))
  assert name == 'dropless' or sown['metrics']['dropped'][0]
  fill = ((0, 29), (0, 7), (0, 0))
  padded, mask = jnp.pad(x, fill), jnp.pad(jnp.ones(x.shape, bool), fill)
  theirs, more = apply({'params': params}, padded + 1 - mask, mask[..., 0])
  np.testing.assert_allclose(theirs[:3, :9], y, rtol=1e-4, atol=1e-6)
  for metric, value in sown['metrics'].items():
    close(more['metrics'][metric][0], value[0], err_msg=metric)


@pytest.mark.parametrize('tokens, size, multiple', [(21, 4, 1), (21, 8, 4)])
def test_groups_need_not_divide_the_batch(tokens, size, multiple):
  """Padding to fill groups changes nothing but the groups."""
  config = moe.MoeConfig(
    num_experts=3, group_size=size, group_multiple=multiple
  )
  G, S = moe.group_shape(3, tokens // 3, config)
  assert tokens <= G * S and size >= S and G % multiple == 0
  x = jax.random.normal(jax.random.key(0), (3, tokens // 3, 16))
  full = dataclasses.replace(config, capacity_factor=3.0, router_std=1.0)
  dense, sparse, _ = upcycled(full, x)
  np.testing.assert_allclose(dense, sparse, rtol=1e-4, atol=1e-6)


def test_the_loss_of_noise_is_of_training_alone():
  """V-MoE's load loss has the name of a metric: both are there."""
  router = functools.partial(routing.top_k, noise_std=1.0)
  config = moe.MoeConfig(
    num_experts=4, router=router, aux_weights=(('load', 0.5),)
  )
  module, x = layer(config), jax.random.normal(jax.random.key(0), (1, 8, 16))
  params = jax.jit(module.init)(jax.random.key(1), x)['params']

  @functools.partial(jax.jit, static_argnames='deterministic')
  def sown(**options):
    _, variables = module.apply(
      {'params': params}, x, mutable=['losses', 'metrics'], **options
    )
    return variables.get('losses', {}), variables['metrics']

  losses, metrics = sown()
  assert not losses and metrics['load'][0].shape == (4,)
  rngs = {'dropout': jax.random.key(2)}
  losses, metrics = sown(deterministic=False, rngs=rngs)
  assert losses['load'][0].shape == () and losses['load'][0] > 0
  assert metrics['load'][0].shape == (4,)


@pytest.mark.parametrize('router', CAUSAL)
def test_no_gradient_from_later_tokens(router):
  """With experts that overflow, through a whole causal layer."""
  B, L, M = 2, 10, 16
  # `causal` is what the layer itself says to its router.
  options = {k: v for k, v in CAUSAL[router].keywords.items() if k != 'causal'}
  config = moe.MoeConfig(
    num_experts=3,
    router=functools.partial(routing.top_k, **options),
    capacity_factor=0.5,
    router_std=1.0,
  )
  module = layer(config, causal=True)
  x = jax.random.normal(jax.random.key(0), (B, L, M))
  params = jax.jit(module.init)(jax.random.key(1), x)

  jacobian = jax.jit(jax.jacrev(lambda x: module.apply(params, x).sum(-1)))(x)
  influence = np.abs(jacobian).sum(-1)  # [B, L] outputs by [B, L] inputs
  for b in range(B):
    later = np.triu(influence[b, :, b], 1)
    assert not later.any(), f'row {b} sees its future'
  apply = jax.jit(functools.partial(module.apply, mutable=['metrics']))
  _, sown = apply(params, x)
  assert sown['metrics']['dropped'][0] > 0, 'nothing overflows: an idle test'


def test_expert_dropout_differs_by_expert():
  x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (16,)), (1, 8, 16))
  config = moe.MoeConfig(num_experts=4, capacity_factor=4.0, expert_dropout=0.5)
  module = layer(config)
  params = jax.jit(module.init)(jax.random.key(1), x)['params']
  params['expert'] = jax.tree.map(
    lambda p: jnp.broadcast_to(p[:1], p.shape), params['expert']
  )
  params['router']['router_weights']['w']['kernel'] = jnp.zeros((16, 4))

  @jax.jit
  def run(one_hot):
    only = functools.partial(_only, one_hot)
    module = layer(dataclasses.replace(config, router=only))
    rngs = {'dropout': jax.random.key(2)}
    return module.apply({'params': params}, x, None, False, rngs=rngs)

  ys = [run(one_hot) for one_hot in jnp.eye(4) * 50]
  assert all(np.abs(ys[0] - y).max() > 1e-3 for y in ys[1:])


def _only(one_hot, logits, capacity, **options):
  return routing.top_k(logits + one_hot, capacity, k=1, **options)


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: moe.MoeConfig(num_experts=0), 'at least one expert'),
    (lambda: moe.MoeConfig(group_size=0), 'group size'),
    (lambda: moe.MoeConfig(capacity_factor=0.0), 'no slots'),
    (lambda: moe.MoeConfig(expert_dropout=1.0), 'expert dropout'),
    (
      lambda: moe.sparse_layers(moe.MoeConfig(), (0, 9), 4, causal=False),
      r'\(0, 9\) are not distinct layers of 0..3',
    ),
    (
      lambda: moe.sparse_layers(moe.MoeConfig(), (1,), 4, causal=True),
      'Expert Choice cannot route a causal stack',
    ),
    (
      lambda: moe.sparse_layers(
        moe.MoeConfig(num_experts=(8, 16)), (1,), 4, causal=False
      ),
      'names 2 layers, but 1',
    ),
    (
      lambda: moe.sparse_layers(
        moe.MoeConfig(num_experts=1, router=routing.top_k),
        (1,),
        4,
        causal=True,
      ),
      'k=2 of 1 experts',
    ),
    (
      lambda: moe.sparse_layers(
        moe.MoeConfig(aux_weights=(('balance', 1.0),)), (1,), 4, causal=False
      ),
      r"gives the losses \['z'\], not \['balance'\]",
    ),
  ],
)
def test_refuses(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize(
  'function, layers_, expected',
  [
    (moe.every_other, 6, (1, 3, 5)),
    (functools.partial(moe.last_n, n=3), 12, (9, 10, 11)),
  ],
)
def test_which_layers(function, layers_, expected):
  assert function(layers_) == expected


@pytest.mark.parametrize(
  'E, C, scale, unrouted',
  [
    (32, 1.0, 0.092, 0.287),
    (32, 2.0, 0.158, 0.061),
    (32, 3.0, 0.218, 0.007),
    (8, 1.0, 0.25, 0.20),
    (8, 2.0, 0.43, 0.005),
    (128, 2.0, 0.054, 0.11),
  ],
)
def test_expected_scale(E, C, scale, unrouted):
  """The sizes of the initial drop at width 768 that theory gives."""
  config = moe.MoeConfig(num_experts=E, capacity_factor=C)
  assert moe.expected_scale(config, 768) == pytest.approx(scale, rel=0.03)
  x = jax.random.normal(jax.random.key(0), (1, 4096, 768))
  logits = 0.02 * x @ jax.random.normal(jax.random.key(1), (768, E))
  slots = routing.capacity(4096, E, C)
  coverage = routing.expert_choice(logits, slots).metrics['coverage']
  assert 1 - coverage == pytest.approx(unrouted, rel=0.15, abs=0.003)
