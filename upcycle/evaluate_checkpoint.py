# SPDX-License-Identifier: Apache-2.0
"""Evaluation alone: a checkpoint of any format, without training."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import itertools
from typing import Any

from upcycle import (
  checkpoints,
  compatibility,
  evaluate,
  initialize,
  partition,
  quantize,
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
  weights: str = 'float32',
  progress: Callable[[str], None] = lambda what: None,
) -> Iterator[tuple[str, dict[str, float | int]]]:
  """What `train` evaluates, of a checkpoint as it is.

  Args:
    source: as read.
    model: whose parameters it holds; nothing is upcycled.
    loss: see `losses`.
    eval_data: batches, finite or bounded by eval_batches; None: none.
    eval_batches: only the first.
    evaluations: further ones by name, functions of the model and parameters.
    weights: what parameters are kept in, see `quantize`.
    progress: is told what is evaluated now.

  Yields:
    ('parameters', their bytes), ('eval', means over eval_data), then (name,
    values) of each evaluation.

  Raises:
    ValueError: the checkpoint does not fit, or there is nothing to evaluate.
  """
  if eval_data is None and not evaluations:
    raise ValueError(
      'Nothing to evaluate: the gin files bind neither train.train.eval_data '
      'nor train.train.evaluations.'
    )
  params = parameters(source, model, weights)
  if weights != 'float32':
    model = quantize.Model(model)
  yield 'parameters', {'bytes': quantize.nbytes(params)}
  if eval_data is not None:
    first = itertools.islice(eval_data, eval_batches)
    step = evaluate.make_eval_step(model, loss)
    yield 'eval', evaluate.evaluate(step, params, _told(first, progress))
  for name, evaluation in (evaluations or {}).items():
    progress(name)
    yield name, evaluation(model, params)


def parameters(
  source: checkpoints.Checkpoint, model: Any, weights: str = 'float32'
) -> Any:
  """A checkpoint's parameters on the devices of the current mesh.

  Each is quantized before the next one is read.

  Raises:
    ValueError: they are not the model's; all that differ are listed.
  """
  shapes = check(source, model)
  want, places = map(trees.flatten, (shapes, partition.shardings(shapes)))
  return trees.unflatten(
    {
      path: quantize.leaf(
        path,
        partition.put(leaf, places[path]).astype(want[path].dtype),
        weights,
      )
      for path, leaf in trees.flatten(source.params).items()
    }
  )


def check(source: checkpoints.Checkpoint, model: Any) -> Any:
  """Shapes of the model's parameters, which are those of the checkpoint.

  Raises:
    ValueError: they are not; all that differ are listed.
  """
  path, shapes = source.metadata['path'], initialize.param_shapes(model)
  compatibility.check(source, model.config, shapes)
  with compatibility.explained(source, model.config):
    if trees.diff(shapes, source.params):
      _refuse_dense(source, model)
    trees.check(shapes, source.params, str(path))
  return shapes


def _refuse_dense(source: checkpoints.Checkpoint, model: Any) -> None:
  if not trees.diff(initialize.param_shapes(model.dense()), source.params):
    raise ValueError(
      f'{source.metadata["path"]} is dense and the model is sparse: take '
      'the config of a dense model, or make it sparse before, by '
      'scripts/upcycle_checkpoint.py.'
    )


def _told(batches: Iterable[Any], progress: Callable) -> Iterator[Any]:
  for number, batch in enumerate(batches):
    progress(f'eval, {number} batches')
    yield batch
