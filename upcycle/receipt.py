# SPDX-License-Identifier: Apache-2.0
"""The receipt: what an upcycled model was made of, and how good it was."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from upcycle import checkpoints, evaluate, losses, surgery, trees

Loss = Callable[..., losses.Sums]


def of_surgery(
  source: checkpoints.Checkpoint, params: Any, expert_init: Any, seed: int
) -> dict[str, Any]:
  """The source, how its experts were made, and `surgery.receipt`."""
  return {
    'source': {**source.metadata, 'step': source.step},
    'expert_init': getattr(expert_init, '__name__', repr(expert_init)),
    'seed': seed,
    **surgery.receipt(source.params, params),
  }


def first_losses(
  model: Any,
  loss: Loss,
  source: trees.Tree,
  params: Any,
  batch: Any,
  dense_shapes: Callable[[Any], Any],
) -> dict[str, Any]:
  """Losses on one batch before and after surgery, and what lies between.

  Without renormalisation an upcycled layer returns its dense MLP's output
  times the sum of a token's combine weights, its scale. What the router's
  initialisation lets expect stands beside what the batch shows.
  """
  values: dict[str, Any] = {'loss': _mean_loss(model, loss, params, batch)}
  expected = model.expected_scales()
  if not expected:
    return values
  measured = _metrics(model, loss, params, batch)
  values['scale'] = {
    path: {'expected': scale, 'measured': float(measured[f'{path}/scale'])}
    for path, scale in expected.items()
  }
  dense = model.dense()
  if not trees.diff(dense_shapes(dense), source):
    before = jax.tree.map(np.asarray, source)
    values['dense_loss'] = _mean_loss(dense, loss, before, batch)
  return values


def _metrics(model: Any, loss: Loss, params: Any, batch: Any) -> Any:
  """What the MoE layers sow on a batch, as in evaluation."""

  @jax.jit
  def run(params, batch):
    sown = {}

    def apply(**inputs):
      logits, variables = model.apply(
        {'params': params}, **inputs, deterministic=True, mutable=['metrics']
      )
      sown.update(variables)
      return logits

    loss(apply, batch)
    return losses.sown(sown['metrics'])

  return run(params, batch)


def _mean_loss(model: Any, loss: Loss, params: Any, batch: Any) -> float:
  step = evaluate.make_eval_step(model, loss)
  return evaluate.evaluate(step, params, [batch])['loss']
