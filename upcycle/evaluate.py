# SPDX-License-Identifier: Apache-2.0
"""Evaluation: exact means over a data set."""

from collections.abc import Callable, Iterable
import functools
import itertools
import time
from typing import Any

import jax

from upcycle import losses, partition
from upcycle.losses import Sums


def make_eval_step(model: Any, loss: Callable[..., Sums]) -> Callable:
  """A jitted (params, batch) -> sums of `loss`, without dropout."""

  @jax.jit
  def eval_step(params: Any, batch: Any) -> Sums:
    def apply(**inputs):
      return model.apply({'params': params}, **inputs, deterministic=True)

    return loss(apply, batch)

  return eval_step


def evaluate(
  eval_step: Callable[..., Sums], params: Any, batches: Iterable[Any]
) -> dict[str, float]:
  """Means over all batches, weighted as the loss weighs.

  Args:
    eval_step: of `make_eval_step`.
    params: the model's parameters.
    batches: finite.

  Returns:
    Every sum of the loss divided by that of `weight`.

  Raises:
    ValueError: there is no batch, or none that weighs anything.
  """
  total: dict[str, float] = {}
  for batch in batches:
    sums = eval_step(params, partition.put_batch(batch))
    for name, value in sums.items():
      total[name] = total.get(name, 0.0) + float(value)
  weight = total.pop('weight', 0.0)
  if not weight:
    raise ValueError(
      'Nothing to evaluate on: the data (eval_data) gave no batch, or all '
      'weights are 0. Give data that begin anew each time, or None.'
    )
  return {name: value / weight for name, value in total.items()}


def timed(
  eval_step: Callable[..., Sums], params: Any, batches: Iterable[Any]
) -> dict[str, float]:
  """`evaluate`, and the tokens or images a second, reading them included."""
  counts, began = [], time.perf_counter()

  def counted():
    for batch in batches:
      counts.append(losses.count(batch))
      yield batch

  means = evaluate(eval_step, params, counted())
  # Each process counted its own rows.
  amount = jax.process_count() * sum(n for _, n in counts)
  seconds = time.perf_counter() - began
  return means | {f'{counts[0][0]}_per_second': amount / seconds}


def on_data(
  batches: Iterable[Any],
  loss: Callable[..., Sums],
  num_batches: int | None = None,
) -> Callable[[Any, Any], dict[str, float]]:
  """Evaluation on one more data set, as one of train's `evaluations`.

  Args:
    batches: finite.
    loss: see `losses`.
    num_batches: only the first; None: all.

  Returns:
    A function (model, params) -> means, see `evaluate`.
  """
  step_of = functools.cache(lambda model: make_eval_step(model, loss))

  def evaluation(model: Any, params: Any) -> dict[str, float]:
    first = itertools.islice(batches, num_batches)
    return evaluate(step_of(model), params, first)

  return evaluation
