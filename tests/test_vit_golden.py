# SPDX-License-Identifier: Apache-2.0
"""Read and applied, other code bases' ViTs give the logits they gave there."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.conftest import GOLDEN, golden
from upcycle import checkpoints
from upcycle.checkpoints import describe
from upcycle.models import vit

BIG_VISION = ('gap', 'gap_rep', 'gap_sincos2d', 'tok', 'map', 'map_scan')
HF = [
  (act, eps)
  for act in ('gelu', 'gelu_new', 'gelu_pytorch_tanh')
  for eps in ('1e-12', '1e-06')
]


def logits(checkpoint, images):
  """Of the model that the checkpoint describes."""
  facts = checkpoint.metadata['model']
  if facts['positions'] == 'sincos2d':
    facts = {'image_size': images.shape[1], **facts}
  model = vit.ViT(vit.ViTConfig(**facts))
  params = jax.tree.map(np.asarray, checkpoint.params)
  return jax.jit(model.apply)({'params': params}, images)


def assert_equal(got, want, source):
  np.testing.assert_allclose(
    got,
    want,
    rtol=1e-4,
    atol=1e-5,
    err_msg=f'{source} gives other logits for these parameters: look for what '
    'differs in names, layout, GELU, epsilon or pooling, not at the numbers.',
  )


def big_vision(name, folder):
  """The checkpoint that big_vision would have saved, its images and logits."""
  arrays, _ = golden('big_vision')
  start = f'{name}/params/'
  params = {
    f'params/{path.removeprefix(start)}': x
    for path, x in arrays.items()
    if path.startswith(start)
  }
  np.savez(folder / f'{name}.npz', **params)
  checkpoint = checkpoints.read(folder / f'{name}.npz')
  return checkpoint, arrays['images'], arrays[f'{name}/logits']


def test_vit_jax():
  arrays, _ = golden('vmoe_vit_jax')
  checkpoint = checkpoints.read(GOLDEN / 'vit_jax_tiny.npz')
  assert_equal(
    logits(checkpoint, arrays['images']), arrays['logits'], 'vit_jax'
  )


@pytest.mark.parametrize('name', BIG_VISION)
def test_big_vision(name, tmp_path):
  checkpoint, images, want = big_vision(name, tmp_path)
  assert_equal(logits(checkpoint, images), want, 'big_vision')


@pytest.mark.parametrize(('act', 'eps'), HF)
def test_hugging_face(act, eps, tmp_path):
  folder = shutil.copytree(GOLDEN / 'hf_tiny_vit', tmp_path / 'vit')
  config = json.loads((folder / 'config.json').read_text())
  config |= {'hidden_act': act, 'layer_norm_eps': float(eps)}
  (folder / 'config.json').write_text(json.dumps(config))
  arrays, _ = golden('hf_vit')
  got = logits(checkpoints.read(folder), arrays['images_nhwc'])
  assert_equal(got, arrays[f'logits/{act}_eps{eps}'], f'Hugging Face, {act}')


@pytest.mark.parametrize('name', ['vit_jax_tiny.npz', 'hf_tiny_vit'])
def test_they_are_described(name):
  text = describe.describe(checkpoints.read(GOLDEN / name))
  for part in (
    'patch_size=4',
    'pool_type=tok',
    'Transformer/encoderblock_3/MlpBlock_0/Dense_1/kernel',
    'parameters in 72 arrays',
  ):
    assert part in text, text
