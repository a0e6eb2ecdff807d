# SPDX-License-Identifier: Apache-2.0
"""Evaluation alone: a checkpoint of any format, without training."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import itertools
from typing import Any

import jax

from upcycle import (
  checkpoints,
  compatibility,
  evaluate,
  initialize,
  partition,
  trees,
)


def evaluate_checkpoint(
  source: checkpoints.Checkpoint,
  model: Any,
  loss: Callable[..., Any],
  *,
  eval_data: Iterable[Any] | None = None,
  eval_batches: int | None = None,
  evaluations: Mapping[str, Callable[..., dict[str, float]]] | None = None,
  progress: Callable[[str], None] = lambda what: None,
) -> Iterator[tuple[str, dict[str, float]]]:
  """What `train` evaluates, of a checkpoint as it is.

  Args:
    source: as read.
    model: whose parameters it holds; nothing is upcycled.
    loss: see `losses`.
    eval_data: batches, finite or bounded by eval_batches; None: none.
    eval_batches: only the first.
    evaluations: further ones by name, functions of the model and parameters.
    progress: is told what is evaluated now.

  Yields:
    ('eval', means over eval_data), then (name, values) of each evaluation.

  Raises:
    ValueError: the checkpoint does not fit, or there is nothing to evaluate.
  """
  if eval_data is None and not evaluations:
    raise ValueError(
      'Nothing to evaluate: the gin files bind neither train.train.eval_data '
      'nor train.train.evaluations.'
    )
  params = parameters(source, model)
  if eval_data is not None:
    first = itertools.islice(eval_data, eval_batches)
    step = evaluate.make_eval_step(model, loss)
    yield 'eval', evaluate.evaluate(step, params, _told(first, progress))
  for name, evaluation in (evaluations or {}).items():
    progress(name)
    yield name, evaluation(model, params)


def parameters(source: checkpoints.Checkpoint, model: Any) -> Any:
  """A checkpoint's parameters on the devices of the current mesh.

  Raises:
    ValueError: they are not the model's; all that differ are listed.
  """
  path, shapes = source.metadata['path'], initialize.param_shapes(model)
  compatibility.check(source, model.config, shapes)
  with compatibility.explained(source, model.config):
    if trees.diff(shapes, source.params):
      _refuse_dense(source, model)
    trees.check(shapes, source.params, str(path))
  return jax.tree.map(
    lambda want, leaf, place: partition.put(leaf, place).astype(want.dtype),
    shapes,
    dict(source.params),
    partition.shardings(shapes),
  )


def _refuse_dense(source: checkpoints.Checkpoint, model: Any) -> None:
  if not trees.diff(initialize.param_shapes(model.dense()), source.params):
    raise ValueError(
      f'{source.metadata["path"]} is dense and the model is sparse: evaluate '
      'it with the config of a dense model, or make it sparse before, by '
      'scripts/upcycle_checkpoint.py.'
    )


def _told(batches: Iterable[Any], progress: Callable) -> Iterator[Any]:
  for number, batch in enumerate(batches):
    progress(f'eval, {number} batches')
    yield batch
