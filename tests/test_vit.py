# SPDX-License-Identifier: Apache-2.0
"""The ViT: V-MoE's numbers, its options, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import golden
from upcycle import initialize, losses, routing, surgery, trees
from upcycle.checkpoints import vit_names
from upcycle.models import moe, vit

VMOE, META = golden('vmoe_upcycle')
TINY = vit.ViTConfig(
  image_size=16,
  patch_size=4,
  width=32,
  depth=4,
  mlp_dim=64,
  num_heads=4,
  num_classes=10,
)
IMAGES = jnp.asarray(VMOE['images'])


def ours(prefix):
  """The tree below a prefix of V-MoE's arrays, under our names."""
  return trees.unflatten(
    {
      trees.rename(key.removeprefix(prefix), vit_names.TABLES['vmoe']): value
      for key, value in VMOE.items()
      if key.startswith(prefix)
    }
  )


def apply(model, params, images, *args):
  return jax.jit(model.apply)({'params': params}, images, *args)


def router_of(case, renormalize):
  """(router, our capacity factor) of one of V-MoE's."""
  given = case['router']
  if given.get('name') == 'NoisyTopItemsPerExpertRouter':
    router = functools.partial(routing.expert_choice, renormalize=renormalize)
    return router, given['dispatcher']['capacity_factor']
  k = given['num_selected_experts']
  router = functools.partial(
    routing.top_k,
    k=k,
    batch_priority=given['dispatcher']['batch_priority'],
    renormalize=renormalize,
  )
  return router, k * given['dispatcher']['capacity_factor']


@pytest.mark.parametrize('case', META['cases'], ids=lambda c: c['case'])
def test_upcycled_logits_are_vmoes(case):
  pool, layers, _ = case['case'].split('/')
  dense = ours(f'{pool}/dense/params/')
  upcycled = trees.flatten(ours(f'{pool}/{layers}/upcycled_params/'))
  compared = 0
  for renormalize, name in ((False, 'logits'), (True, 'renorm_logits')):
    if f'{case["case"]}/{name}' not in VMOE:
      continue
    router, factor = router_of(case, renormalize)
    config = moe.MoeConfig(
      num_experts=4,
      router=router,
      capacity_factor=factor,
      capacity_rounding='ceil',
      capacity_multiple_of=case['router']['dispatcher'].get(
        'capacity_multiple_of', 4
      )
      or 1,
      group_size=None,
    )
    model = vit.ViT(
      dataclasses.replace(TINY, moe=config, moe_layers=tuple(case['layers']))
    )
    params = surgery.upcycle(
      dense,
      initialize.param_shapes(model),
      key=jax.random.key(0),
      fresh={p: x for p, x in upcycled.items() if '/Router/' in p},
    )
    for path, want in upcycled.items():
      np.testing.assert_array_equal(trees.flatten(params)[path], want)
    logits = apply(model, params, IMAGES)
    np.testing.assert_allclose(
      logits, VMOE[f'{case["case"]}/{name}'], rtol=1e-4, atol=1e-5
    )
    compared += 1
  assert compared


def test_dense_logits_and_features_are_vmoes():
  params = ours('gap/dense/params/')
  model = vit.ViT(TINY)
  for module, name in ((model, 'logits'), (model.features(), 'features')):
    values = apply(module, params, IMAGES)
    np.testing.assert_allclose(
      values, VMOE[f'gap/dense/{name}'], rtol=1e-4, atol=1e-5
    )


OPTIONS = {
  'gap': {},
  'tok': {'pool_type': 'tok'},
  'map': {'pool_type': 'map'},
  'sincos2d': {'positions': 'sincos2d'},
  'sincos2d with a class token': {'positions': 'sincos2d', 'pool_type': 'tok'},
  'pre_logits': {'representation_size': 24},
  'qk_norm': {'qk_norm': True},
  'exact GELU': {'activation': 'gelu_exact', 'norm_epsilon': 1e-12},
  'dropout': {'dropout_rate': 0.1},
}


def sparse(config, **options):
  options = {'num_experts': 4, 'group_size': None} | options
  return dataclasses.replace(config, moe=moe.MoeConfig(**options))


def trained(model):
  """Parameters whose head is not zero, as it is when fresh."""
  params = jax.jit(lambda: initialize.init_params(model, 0))()
  head = params['head']['kernel']
  params['head']['kernel'] = jax.random.normal(jax.random.key(1), head.shape)
  return params


@pytest.mark.parametrize('name', OPTIONS)
def test_every_option_upcycles_to_the_dense_function(name):
  """With every expert taking every token, and gradients to all parameters."""
  config = dataclasses.replace(TINY, depth=2, **OPTIONS[name])
  model = vit.ViT(sparse(config, capacity_factor=4.0))
  dense = trained(model.dense())
  router = functools.partial(routing.expert_choice, renormalize=True)
  model = vit.ViT(sparse(config, capacity_factor=4.0, router=router))
  params = surgery.upcycle(
    dense, initialize.param_shapes(model), key=jax.random.key(0)
  )
  images = IMAGES[:2]
  want = apply(model.dense(), dense, images)
  np.testing.assert_allclose(
    apply(model, params, images), want, rtol=1e-4, atol=1e-5
  )

  def total(params):
    logits = model.apply(
      {'params': params},
      images,
      deterministic=False,
      rngs={'dropout': jax.random.key(2)},
    )
    return jnp.sum(jnp.sin(logits))

  grads = trees.flatten(jax.jit(jax.grad(total))(params))
  # A bias of the keys shifts all logits of a query alike; and as the experts
  # are copies, renormalised, no choice of the router matters yet.
  idle = {path for path, g in grads.items() if np.abs(g).max() < 1e-5}
  assert idle == {
    path
    for path in grads
    if '/Router/' in path or (path.endswith('/key/bias') and not config.qk_norm)
  }


def test_images_that_fill_a_batch_are_not_routed():
  """Not even in one group with others, where they would take their slots."""
  params = trained(vit.ViT(sparse(TINY)))

  def logits(images, valid):
    config = sparse(TINY, group_size=4096)
    return apply(vit.ViT(config), params, images, valid)

  valid = jnp.array([True, True, False, False])
  alone = logits(IMAGES[:2], None)
  padded = logits(IMAGES, valid)[:2]
  np.testing.assert_allclose(padded, alone, rtol=1e-4, atol=1e-5)
  routed = logits(IMAGES, None)[:2]
  assert np.abs(routed - alone).max() > 1e-3


def test_a_group_of_one_image_ignores_the_others():
  model = vit.ViT(sparse(TINY))
  params = trained(model)
  np.testing.assert_allclose(
    apply(model, params, IMAGES)[:1],
    apply(model, params, IMAGES.at[1:].multiply(-1))[:1],
    rtol=1e-5,
    atol=1e-6,
  )


def test_remat_changes_no_gradient():
  small = dataclasses.replace(TINY, depth=2)

  def gradient(config):
    model = vit.ViT(sparse(config))

    def total(params):
      return jnp.sum(apply(model, params, IMAGES) ** 2)

    return jax.jit(jax.grad(total))(trained(model))

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    gradient(small),
    gradient(dataclasses.replace(small, remat=True)),
  )


def test_bfloat16_is_close():
  model = vit.ViT(dataclasses.replace(TINY, dtype='bfloat16'))
  params = ours('gap/dense/params/')
  logits = apply(model, params, IMAGES)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, VMOE['gap/dense/logits'], atol=0.05)


@pytest.mark.parametrize(
  'layers, expected',
  [
    (moe.last_half, (6, 7, 8, 9, 10, 11)),
    (functools.partial(moe.last_n, n=2), (10, 11)),
    (functools.partial(moe.last_n_odd, n=2), (9, 11)),
    (functools.partial(moe.every_n, n=4), (3, 7, 11)),
    ((0, 5), (0, 5)),
  ],
)
def test_which_layers_are_sparse(layers, expected):
  config = vit.preset('vit_b16', moe=moe.MoeConfig(), moe_layers=layers)
  assert tuple(config.sparse_layers()) == expected


@pytest.mark.parametrize(
  'name, dense, upcycled',
  [  # Sparse Upcycling, table 1; a head of 1,000 classes.
    ('vit_b32', 88.2e6, 967e6),
    ('vit_b16', 86.6e6, 965e6),
    ('vit_l32', 306e6, 3.429e9),
    ('vit_l16', 304e6, 3.427e9),
  ],
)
def test_parameter_counts_of_the_paper(name, dense, upcycled):
  def count(config):
    shapes = initialize.param_shapes(vit.ViT(config))
    return sum(x.size for x in jax.tree.leaves(shapes))

  assert count(vit.preset(name)) == pytest.approx(dense, rel=0.01)
  assert count(vit.preset(name, moe=moe.MoeConfig())) == pytest.approx(
    upcycled, rel=0.01
  )


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'image_size': 20, 'patch_size': 8}, 'image_size=20 is no multiple of 8'),
    ({'width': 30}, 'width=30 is no multiple of 4'),
    ({'pool_type': 'cls'}, "pool_type='cls' is none of"),
    ({'positions': 'rope', 'activation': 'swish'}, 'activation=.swish'),
    ({'moe_layers': (4,), 'moe': moe.MoeConfig()}, 'distinct layers of 0..3'),
  ],
)
def test_refuses_configs(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize('shape', [(2, 8, 16, 3), (2, 16, 16, 1)])
def test_refuses_images_of_another_shape(shape):
  with pytest.raises(ValueError, match='set image_size and channels'):
    vit.ViT(TINY).init(jax.random.key(0), jnp.zeros(shape))


def classification(logits, labels, label_weights, weights, **options):
  batch = {
    'images': np.zeros((len(weights), 1, 1, 1), np.float32),
    'labels': np.asarray(labels, np.int32),
    'label_weights': np.asarray(label_weights, np.float32),
    'weights': np.asarray(weights, np.float32),
  }
  return losses.classification(
    lambda images, valid: jnp.asarray(logits), batch, **options
  )


def test_classification_loss():
  logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5], [9.0, 9.0, 9.0]])
  labels = [[0, 0], [1, 2], [0, 0]]
  label_weights = [[1, 0], [0.75, 0.25], [1, 0]]
  log_p = np.asarray(jax.nn.log_softmax(logits))
  sums = classification(logits, labels, label_weights, [1, 1, 0])
  want = -log_p[0, 0] - 0.75 * log_p[1, 1] - 0.25 * log_p[1, 2]
  assert float(sums['loss']) == pytest.approx(want, rel=1e-6)
  assert float(sums['accuracy']) == 1.75 and float(sums['weight']) == 2

  log_1, log_0 = (np.asarray(jax.nn.log_sigmoid(s * logits)) for s in (1, -1))
  targets = np.array([[1, 0, 0], [0, 0.75, 0.25]])
  want = -np.sum(targets * log_1[:2] + (1 - targets) * log_0[:2])
  sums = classification(
    logits, labels, label_weights, [1, 1, 0], kind='sigmoid'
  )
  assert float(sums['loss']) == pytest.approx(want, rel=1e-6)
  with pytest.raises(ValueError, match="'softmax' or 'sigmoid'"):
    classification(logits, labels, label_weights, [1, 1, 0], kind='hinge')
