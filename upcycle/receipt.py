# SPDX-License-Identifier: Apache-2.0
"""The receipt: what an upcycled model was made of, and how good it was."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from upcycle import checkpoints, losses, surgery, trees

Loss = Callable[..., losses.Sums]


def of_surgery(
  source: checkpoints.Checkpoint,
  params: Any,
  expert_init: Any,
  seed: int,
  rules: surgery.Rules = surgery.RULES,
  digests: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """The source, how its experts were made, and `surgery.receipt`."""
  return {
    'source': {**source.metadata, 'step': source.step},
    'expert_init': getattr(expert_init, '__name__', repr(expert_init)),
    'seed': seed,
    **surgery.receipt(source.params, params, rules, digests),
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
  mean, metrics = _evaluate(model, loss, params, batch)
  values: dict[str, Any] = {'loss': mean}
  expected = model.expected_scales()
  if not expected:
    return values
  measured = _scales(model, metrics)
  values['scale'] = {
    path: {'expected': scale, 'measured': measured[path]}
    for path, scale in expected.items()
  }
  dense = model.dense()
  if not trees.diff(dense_shapes(dense), source):
    values['dense_loss'], _ = _evaluate(dense, loss, source, batch)
  return values


def scales(model: Any, loss: Loss, params: Any, batch: Any) -> dict[str, float]:
  """Mean sum of a token's combine weights in every MoE layer, on one batch."""
  _, metrics = _evaluate(model, loss, params, batch)
  return _scales(model, metrics)


def _scales(model: Any, metrics: Mapping[str, Any]) -> dict[str, float]:
  return {path: float(metrics[f'{path}/scale']) for path in model.moe_layers()}


def _evaluate(
  model: Any, loss: Loss, params: Any, batch: Any
) -> tuple[float, dict[str, Any]]:
  """The mean loss on a batch and what the MoE layers sow, in evaluation."""

  @jax.jit
  def run(params, batch):
    sown = {}

    def apply(**inputs):
      logits, variables = model.apply(
        {'params': params}, **inputs, deterministic=True, mutable=['metrics']
      )
      sown.update(variables)
      return logits

    sums = loss(apply, batch)
    return sums, losses.sown(sown.get('metrics', {}))

  sums, metrics = run(params, batch)
  return float(sums['loss'] / sums['weight']), metrics
