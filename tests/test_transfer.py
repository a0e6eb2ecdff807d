# SPDX-License-Identifier: Apache-2.0
"""Checkpoints made ready for another task: heads and resolutions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upcycle import (
  checkpoints,
  initialize,
  losses,
  optim,
  positions,
  surgery,
  transfer,
  trees,
)
from upcycle.checkpoints import slots
from upcycle.checkpoints import state as run_state
from upcycle.models import moe, vit

TINY = vit.ViTConfig(
  image_size=16,
  patch_size=4,
  width=8,
  depth=2,
  mlp_dim=12,
  num_heads=2,
  num_classes=5,
  representation_size=6,
)
POSITIONS = 'Transformer/posembed_input/pos_embedding'
HEAD = ('head/.*', 'pre_logits/.*')


def model(**changes):
  return vit.ViT(dataclasses.replace(TINY, **changes))


def shapes(**changes):
  return initialize.param_shapes(model(**changes))


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A dense run of AdamW at step 40; all its numbers differ."""
  folder = tmp_path_factory.mktemp('dense')
  rng = np.random.default_rng(0)

  def draw(x):
    return jnp.asarray(rng.uniform(0.1, 1, x.shape), x.dtype)

  params = jax.tree.map(draw, shapes())
  state = optim.adamw(1e-3).init(params)
  view = jax.tree.map(draw, slots.get(state)) | {'count': jnp.int32(40)}
  tree = {'params': params, 'opt_state': slots.replace(state, view)}
  with run_state.manager(folder) as saved:
    run_state.save(saved, 40, tree, {}, {})
  return checkpoints.read(folder)


def test_a_new_head_is_not_taken_from_the_source(source):
  want = shapes(num_classes=7)
  regexes = ('head/kernel', r'head/bias|pre_logits/(kernel|bias)')
  adapted, rules, slot_rules = transfer.adapt(source, want, regexes)
  found = surgery.origins(adapted.params, want, rules)
  fresh = {path for path, origin in found.items() if origin.kind == 'fresh'}
  assert fresh == {
    f'{name}/{part}'
    for name in ('head', 'pre_logits')
    for part in ('kernel', 'bias')
  }
  assert not fresh & trees.flatten(adapted.params).keys()
  state = jax.eval_shape(optim.adamw(0.1).init, want)
  origins = surgery.origins(adapted.opt_state, slots.get(state), slot_rules)
  new = {path for path, origin in origins.items() if origin.kind == 'fresh'}
  assert new == {f'{path}/{slot}' for path in fresh for slot in ('mu', 'nu')}


def test_a_head_that_the_model_lacks_is_dropped(source):
  want = shapes(representation_size=None)
  adapted, rules, _ = transfer.adapt(source, want, ('pre_logits/.*', 'head/.*'))
  assert surgery.origins(adapted.params, want, rules)


def test_positions_are_resized_lazily_without_their_moments(source):
  want = shapes(image_size=24)
  adapted, _, _ = transfer.adapt(source, want, resize_positions=True)
  found = trees.flatten(adapted.params)[POSITIONS]
  assert found.shape == (1, 36, 8)
  old = np.asarray(trees.flatten(source.params)[POSITIONS])
  np.testing.assert_array_equal(found, positions.resize(old, 36))
  left = [p for p in trees.flatten(adapted.opt_state) if POSITIONS in p]
  assert not left


def test_the_same_task_changes_nothing(source):
  adapted, rules, slot_rules = transfer.adapt(
    source, shapes(), resize_positions=True
  )
  assert adapted == source
  assert rules == slot_rules == surgery.RULES


@pytest.mark.parametrize(
  'changes, options, message',
  [
    (
      {'image_size': 24, 'num_classes': 7},
      {},
      r'(?s)mismatch: Transf.*pos_embedding.*mismatch: head/kernel.*'
      r'resized by InitFrom.resize_positions = True',
    ),
    (
      {'num_classes': 7},
      {'replace': ('head/kernel', 'haed/.*', 'head')},
      r"match no parameter .*\['haed/\.\*', 'head'\]",
    ),
    (
      {'pool_type': 'tok'},
      {'resize_positions': True},
      'second have a cls token',
    ),
    ({'num_classes': 7}, {'replace': ('head/bias',)}, 'mismatch: head/kernel'),
    ({'num_classes': 7}, {}, r"made anew by InitFrom.replace = \('head/.*',\)"),
    ({'num_classes': None}, {}, '(?s)unused source: head/kernel.*.replace = '),
  ],
)
def test_refuses_another_task(source, changes, options, message):
  with pytest.raises(ValueError, match=message):
    transfer.adapt(source, shapes(**changes), **options)


def test_a_run_of_another_task(source):
  """Upcycled, finer, with a new head; moments of what is kept expanded."""
  sparse = model(image_size=24, num_classes=7, moe=moe.MoeConfig(num_experts=3))
  init = initialize.InitFrom(
    source.metadata['path'],
    optimizer_state='expand',
    replace=HEAD,
    resize_positions=True,
  )
  batch = {
    'images': np.random.default_rng(0).normal(size=(2, 24, 24, 3)),
    'labels': np.zeros((2, 1), np.int32),
    'label_weights': np.ones((2, 1), np.float32),
    'weights': np.ones(2, np.float32),
  }
  state, made_of = initialize.from_checkpoint(
    init, sparse, losses.classification, optim.adamw(0.1), batch, 0
  )
  params = trees.flatten(state.params)
  moments = trees.flatten(slots.get(state.opt_state))
  dense = trees.flatten(source.params)
  dense_moments = trees.flatten(source.opt_state)
  assert params[POSITIONS].shape == (1, 36, 8)
  assert params['head/kernel'].shape == (6, 7)
  assert made_of['origin']['pre_logits/kernel'] == {'kind': 'fresh'}
  assert made_of['step'] == 40
  new = r'pre_logits/kernel', 'head/kernel', POSITIONS
  for path in new:
    assert not moments[f'{path}/mu'].any()
    assert not moments[f'{path}/nu'].any()
  kernel = 'Transformer/encoderblock_1/{}/Dense_0/kernel'
  for expert in range(3):
    np.testing.assert_array_equal(
      params[kernel.format('Moe/Mlp')][expert],
      dense[kernel.format('MlpBlock_0')],
    )
    for slot in ('mu', 'nu'):
      np.testing.assert_array_equal(
        moments[kernel.format('Moe/Mlp') + f'/{slot}'][expert],
        dense_moments[kernel.format('MlpBlock_0') + f'/{slot}'],
      )
