# SPDX-License-Identifier: Apache-2.0
"""Surgery on files, for ViTs; T5's are in test_surgery.py."""

import dataclasses
import json

import numpy as np
import pytest

from tests.conftest import GOLDEN
from upcycle import (
  checkpoints,
  compatibility,
  convert,
  initialize,
  losses,
  optim,
  trees,
)
from upcycle.checkpoints import vit_npz
from upcycle.models import moe, t5, vit

VIT_JAX = GOLDEN / 'vit_jax_tiny.npz'
HUGGING_FACE = GOLDEN / 'hf_tiny_vit'


def sparse(path, **changes):
  """A sparse ViT that fits the dense checkpoint at a path."""
  facts = checkpoints.read(path).metadata['model'] | changes
  config = moe.MoeConfig(num_experts=2, group_size=None)
  return vit.ViT(vit.ViTConfig(**facts, moe=config))


@pytest.mark.parametrize('fmt', [None, 'orbax'])
def test_a_vit_goes_to_npz_or_to_our_own(fmt, tmp_path):
  model = sparse(VIT_JAX)
  convert.convert(model, str(VIT_JAX), tmp_path, format=fmt)
  written = tmp_path if fmt else tmp_path / 'checkpoint_0.npz'
  found = checkpoints.read(written).params
  assert not trees.diff(initialize.param_shapes(model), found)
  block = 'Transformer/encoderblock_3'
  experts = trees.flatten(found)[f'{block}/Moe/Mlp/Dense_0/kernel']
  dense = trees.flatten(checkpoints.read(VIT_JAX).params)
  for expert in np.asarray(experts):
    np.testing.assert_array_equal(
      expert, dense[f'{block}/MlpBlock_0/Dense_0/kernel']
    )
  assert json.loads((tmp_path / 'receipt.json').read_text())['origin']


def test_formats_of_other_models_are_refused(tmp_path):
  with pytest.raises(ValueError, match="'t5x' is no format of a ViT"):
    convert.convert(sparse(VIT_JAX), str(VIT_JAX), tmp_path, format='t5x')
  model = t5.T5(t5.preset('t5_1_1_small'))
  with pytest.raises(ValueError, match="'npz' is no format of a T5"):
    convert.convert(model, str(VIT_JAX), tmp_path, format='npz')
  assert not list(tmp_path.iterdir())


def test_what_shapes_do_not_tell_stays_with_the_checkpoint(tmp_path):
  """GELU and epsilon of a Hugging Face ViT: our own format, unasked."""
  model = sparse(HUGGING_FACE)
  assert model.config.activation == 'gelu_exact'
  convert.convert(model, str(HUGGING_FACE), tmp_path)
  found, shapes = checkpoints.read(tmp_path), initialize.param_shapes(model)
  compatibility.check(found, model.config, shapes)
  other = dataclasses.replace(model.config, activation='gelu')
  with pytest.raises(ValueError, match="activation='gelu_exact'"):
    compatibility.check(found, other, shapes)


def test_npz_refuses_what_it_cannot_say(tmp_path):
  file = tmp_path / 'vit.npz'
  params = checkpoints.read(HUGGING_FACE).params
  facts = compatibility.facts(sparse(HUGGING_FACE).config)
  message = r"cannot say .*'gelu_exact'.* \(--format=orbax\) can"
  with pytest.raises(ValueError, match=message):
    vit_npz.write(file, params, facts)
  assert not file.exists()
  vit_npz.write(file, params, {'activation': 'gelu', 'norm_epsilon': 1e-6})


def test_all_that_a_published_file_lacks_is_said_at_once():
  init = initialize.InitFrom(str(VIT_JAX), optimizer_state='expand')
  message = r'does not record its step.*; and it has no optimizer state'
  with pytest.raises(ValueError, match=message):
    initialize.from_checkpoint(
      init,
      sparse(VIT_JAX),
      losses.classification,
      optim.adamw(1e-3),
      batch=None,
      seed=0,
    )


def test_lists_in_configs_do_not_break_jit():
  config = dataclasses.replace(sparse(VIT_JAX).config, moe_layers=[1])
  model = vit.ViT(config)
  assert hash(model) and tuple(model.config.sparse_layers()) == (1,)
  config = t5.preset('t5_1_1_small', encoder_moe_layers=[1, 3])
  assert hash(t5.T5(config)) and config.encoder_moe_layers == (1, 3)


def test_a_class_token_is_not_promised_a_resize():
  """Another number of positions, but not another resolution."""
  model = sparse(VIT_JAX, pool_type='gap')
  init = initialize.InitFrom(
    str(VIT_JAX), step=0, replace=('cls',), optimizer_state='fresh'
  )
  with pytest.raises(ValueError, match='pos_embedding') as error:
    initialize.from_checkpoint(
      init, model, losses.classification, optim.adamw(1e-3), None, 0
    )
  assert 'resize_positions' not in str(error.value)
