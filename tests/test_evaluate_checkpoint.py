# SPDX-License-Identifier: Apache-2.0
"""A checkpoint evaluated without training, by function and by script."""

import json

import jax
import numpy as np
import pytest

from tests import tiny_scripts, tiny_vit_runs
from upcycle import (
  checkpoints,
  evaluate,
  evaluate_checkpoint,
  losses,
  results,
)
from upcycle.models import moe, vit

DENSE = 'configs/dense_vit_laptop.gin'
CONFIG = vit.preset(
  'vit_s16',
  image_size=8,
  num_classes=tiny_vit_runs.CLASSES,
  **tiny_vit_runs.SIZES,
)


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  return tiny_vit_runs.files(tmp_path_factory.mktemp('tiny'))


@pytest.fixture(scope='module')
def source(paths):
  return checkpoints.read(paths['dense'])


def batches(count, seed=0):
  rng = np.random.default_rng(seed)
  return [
    {
      'images': rng.normal(size=(4, 8, 8, 1)).astype(np.float32),
      'labels': rng.integers(0, tiny_vit_runs.CLASSES, (4, 1)),
      'label_weights': np.ones((4, 1), np.float32),
      'weights': np.ones(4, np.float32),
    }
    for _ in range(count)
  ]


def test_what_training_evaluates(source):
  model, data, told = vit.ViT(CONFIG), batches(3), []
  other = batches(3, seed=1)
  found = evaluate_checkpoint.evaluate_checkpoint(
    source,
    model,
    losses.classification,
    eval_data=data,
    eval_batches=2,
    evaluations={
      'other': evaluate.on_data(other, losses.classification, 2),
      'size': lambda model, params: {'arrays': len(jax.tree.leaves(params))},
    },
    progress=told.append,
  )
  found = dict(found)
  params = jax.tree.map(np.asarray, source.params)
  step = evaluate.make_eval_step(model, losses.classification)
  assert found['eval'] == evaluate.evaluate(step, params, data[:2])
  assert found['eval']['loss'] != pytest.approx(np.log(5), abs=1e-3)
  assert found['other'] == evaluate.evaluate(step, params, other[:2])
  assert found['parameters'] == {
    'bytes': sum(x.nbytes for x in jax.tree.leaves(params))
  }
  assert found['size'] == {'arrays': len(jax.tree.leaves(params))}
  assert told == ['eval, 0 batches', 'eval, 1 batches', 'other', 'size']


def test_refuses_what_is_not_the_models(source):
  def parameters(**changes):
    config = vit.preset(
      'vit_s16',
      image_size=8,
      **{'num_classes': 5, **tiny_vit_runs.SIZES, **changes},
    )
    return evaluate_checkpoint.parameters(source, vit.ViT(config))

  sparse = moe.MoeConfig(num_experts=2)
  with pytest.raises(ValueError, match='is dense and the model is sparse'):
    parameters(moe=sparse)
  message = r'(?s)num_classes=5, the model 7\.\n.*2 parameters do not fit'
  with pytest.raises(ValueError, match=message):
    parameters(num_classes=7)
  changed = source.metadata | {'model': {'activation': 'gelu'}}
  tanh = checkpoints.Checkpoint(source.params, 0, None, changed)
  with pytest.raises(ValueError, match="Set in ViTConfig: activation='gelu'"):
    evaluate_checkpoint.parameters(
      tanh, vit.ViT(vit.preset('vit_s16', activation='gelu_exact'))
    )
  nothing = evaluate_checkpoint.evaluate_checkpoint(
    source, vit.ViT(CONFIG), losses.classification
  )
  with pytest.raises(ValueError, match='Nothing to evaluate: the gin files'):
    next(nothing)


def call(monkeypatch, paths, *args, model_dir=None, drop=()):
  text = DENSE + (tiny_scripts.ROOT / DENSE).read_text()
  drop = (*drop, 'DENSE_CHECKPOINT', *([] if model_dir else ['MODEL_DIR']))
  lines = [
    line
    for line in tiny_vit_runs.bindings(text, paths, model_dir)
    if not line.startswith(drop)
  ]
  flags = tiny_scripts.flags([DENSE], lines)
  return tiny_scripts.main(monkeypatch, 'evaluate.py', *flags, *args)


def test_the_script(paths, tmp_path, monkeypatch, capsys):
  output = tmp_path / 'results/evaluation.jsonl'
  args = f'--checkpoint={paths["dense"]}', f'--output={output}'
  for weights in ('float32', 'int8'):
    extra = f'--weights={weights}'
    assert call(monkeypatch, paths, *args, extra) is None
  shown = capsys.readouterr().out
  rows = results.read(output)
  assert [row['split'] for row in rows] == ['parameters', 'eval', 'fewshot'] * 2
  assert [row['weights'] for row in rows] == ['float32'] * 3 + ['int8'] * 3
  assert rows[0]['step'] == 1000
  assert rows[0]['checkpoint'] == paths['dense']
  for name in ('bytes', 'loss', 'accuracy', '10shot/mnist'):
    assert name in shown and name in rows[0] | rows[1] | rows[2]
  assert f'{rows[1]["loss"]:.4f}' in shown
  assert f'{rows[3]["bytes"]:,}' in shown
  assert rows[3]['bytes'] < rows[0]['bytes'] / 2


def test_the_script_evaluates_the_run_in_model_dir(
  paths, tmp_path, monkeypatch
):
  config = vit.preset(
    'vit_s16', image_size=8, num_classes=5, **tiny_vit_runs.SIZES
  )
  tiny_vit_runs.save(tmp_path / 'run', config)
  leave_out = '--gin.train.train.evaluations=None'
  run = tmp_path / 'run'
  assert call(monkeypatch, paths, leave_out, model_dir=run) is None
  for line in (run / 'evaluation.jsonl').read_text().splitlines():
    assert json.loads(line)['checkpoint'] == str(run)


def test_the_script_makes_no_run(paths, tmp_path, monkeypatch):
  run, leave_out = tmp_path / 'run', '--gin.train.train.evaluations=None'
  args = f'--checkpoint={paths["dense"]}', leave_out
  error = call(monkeypatch, paths, *args, model_dir=run)
  assert f'There is no run in {run}' in error and '--output' in error
  assert not run.exists()
  run.mkdir()
  (run / results.CONFIG).touch()
  assert call(monkeypatch, paths, *args, model_dir=run) is None
  assert (run / 'evaluation.jsonl').exists()


def test_the_script_says_what_is_missing(paths, monkeypatch):
  error = call(monkeypatch, paths)
  assert 'bind nothing to train.model_dir = %MODEL_DIR' in error
