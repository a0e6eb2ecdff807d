# SPDX-License-Identifier: Apache-2.0
"""What a training step keeps in memory, and the benchmark of whole steps."""

import runpy
import sys

import jax
import numpy as np

from tests.tiny_scripts import ROOT
from upcycle import initialize, losses, optim, train_step
from upcycle.models import vit


def compiled(microbatches=1):
  """The state of a small ViT and what its step on 64 images takes."""
  config = vit.preset(
    'vit_mu16', image_size=32, patch_size=8, num_classes=4, depth=2
  )
  model, optimizer = vit.ViT(config), optim.adamw(1e-3)
  state = jax.eval_shape(lambda: initialize.from_scratch(model, optimizer, 0))
  shapes = {
    'images': ((64, 32, 32, 3), np.float32),
    'labels': ((64, 1), np.int32),
    'label_weights': ((64, 1), np.float32),
    'weights': ((64,), np.float32),
  }
  batch = {k: jax.ShapeDtypeStruct(*v) for k, v in shapes.items()}
  step = train_step.make_train_step(
    model, losses.classification, optimizer, microbatches=microbatches
  )
  step = train_step.compile_step(step, state, batch)
  return state, step.memory_analysis()


def test_a_state_is_updated_in_place_and_microbatches_save_activations():
  state, whole = compiled()
  leaves = jax.tree.leaves((state.params, state.opt_state))
  size = sum(x.size * x.dtype.itemsize for x in leaves)
  assert whole.alias_size_in_bytes >= size
  _, parts = compiled(microbatches=4)
  assert parts.alias_size_in_bytes >= size
  assert parts.temp_size_in_bytes < 0.4 * whole.temp_size_in_bytes


def test_the_benchmark_of_steps_runs(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['step.py', '--quick'])
  path = ROOT / 'experiments' / 'performance' / 'step.py'
  monkeypatch.syspath_prepend(path.parent)
  runpy.run_path(str(path), run_name='__main__')
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[:2] for line in lines[2:]] == [
    ['quick', 'dense'],
    ['quick', 'sparse'],
  ]
