# SPDX-License-Identifier: Apache-2.0
"""Training: from a dense checkpoint, from our own, or from nothing."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import functools
import itertools
import json
from pathlib import Path
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
import optax

from upcycle import (
  compatibility,
  cost,
  evaluate,
  initialize,
  losses,
  partition,
  preemption,
  results,
  train_step,
)
from upcycle.checkpoints import state as run_state
from upcycle.initialize import InitFrom, TrainState


def train(
  model_dir: str,
  model: Any,
  *,
  optimizer: optax.GradientTransformation,
  train_data: Iterable[Any],
  num_steps: int,
  loss: Callable[..., losses.Sums] = losses.seq2seq,
  eval_data: Iterable[Any] | None = None,
  eval_batches: int | None = None,
  evaluations: Mapping[str, Callable[..., dict[str, float]]] | None = None,
  init_from: InitFrom | None = None,
  make_mesh: Callable[..., jax.sharding.Mesh] = partition.make_mesh,
  microbatches: int = 1,
  log_every: int = 10,
  eval_every: int = 1000,
  evaluations_every: int | None = None,
  checkpoint_every: int = 1000,
  keep_checkpoints: int | None = 2,
  seed: int = 0,
  config: Callable[[], str] = str,
) -> TrainState:
  """Trains for num_steps steps after the step it starts from.

  The state comes from (1) the newest own checkpoint in model_dir, so that a
  run that was killed goes on; (2) init_from; (3) scratch, only without it.

  Args:
    model_dir: the run's folder: config.gin, receipt.json, metrics.jsonl,
      TensorBoard events and checkpoints.
    model: a linen module; `init` and `apply` take the batch's inputs.
    optimizer: its state's counts are set to the global step.
    train_data: its iterators give batches and have get_state and set_state.
    num_steps: steps of this run.
    loss: of `upcycle.losses`.
    eval_data: evaluated on from its beginning.
    eval_batches: how many of its batches; None: all.
    evaluations: of (model, params), numbers by name; at both ends of a run.
    init_from: the dense checkpoint.
    make_mesh: of the devices, from the experts of each sparse layer.
    microbatches: parts of a batch whose gradients are summed one by one.
    log_every: steps between lines of metrics.
    eval_every: steps between evaluations; also at both ends of a run.
    evaluations_every: also after these steps, a multiple of eval_every.
    checkpoint_every: steps between checkpoints; also at the end.
    keep_checkpoints: newest checkpoints kept; None: all.
    seed: of initialisation and dropout.
    config: gives the run's configuration as text.

  Returns:
    The final state.

  Raises:
    ValueError: model_dir is another run's or in use, or something does not fit.
    FloatingPointError: a loss was not finite; the checkpoints before stay.
    preemption.Preempted: SIGTERM came; the state is saved.
  """
  folder, first = Path(model_dir), jax.process_index() == 0
  results.check_folder(folder, config())
  mesh = make_mesh(model.num_experts())
  with results.held(folder, enabled=first), jax.set_mesh(mesh):
    batches = iter(train_data)
    beginning, batch = batches.get_state(), partition.put_batch(next(batches))
    batches.set_state(beginning)
    every = log_every, eval_every, evaluations_every, checkpoint_every
    _check_numbers(num_steps, microbatches, every, batch)
    start = functools.partial(initialize.from_scratch, model, optimizer, seed)
    receipt, run = None, None
    # (1) The newest own checkpoint.
    if run_state.latest_step(folder) is not None:
      shapes = jax.eval_shape(initialize.on_mesh(start))
      state, data, run = run_state.restore(folder, shapes)
      batches.set_state(data)
    # (2) A given checkpoint, upcycled where the model is sparse.
    elif init_from is not None:
      state, receipt = initialize.from_checkpoint(
        init_from, model, loss, optimizer, batch, seed
      )
    # (3) Scratch.
    else:
      state = initialize.on_mesh(start)()
    step, resume = int(state.step), -1 if run is None else int(state.step)
    run = run or {'start': step, 'seconds': 0.0}
    run['model'] = compatibility.facts(model.config)
    end = run['start'] + num_steps
    step_fn = train_step.make_train_step(
      model, loss, optimizer, microbatches=microbatches, seed=seed
    )
    forward = evaluate.make_eval_step(model, loss)
    spent = cost.of_run(model, step_fn, forward, state, batch)
    step_fn = train_step.compile_step(step_fn, state, batch)
    measure = _evaluation(model, forward, eval_data, eval_batches, evaluations)
    # By now all that is configured has been called, and is in the config.
    _write_down(folder, config(), receipt)
    with (
      preemption.Watch(step) as watch,
      results.Writer(folder, resume_step=resume, enabled=first) as writer,
      cost.written(writer, step, end, spent),
      # Within: a run that says that it has ended has its last checkpoint.
      run_state.manager(folder, keep_checkpoints) as saved,
      results.Progress(run['start'], end, enabled=first) as progress,
    ):

      def evaluate_now(end: bool = True):
        every = end or (evaluations_every and step % evaluations_every == 0)
        for name, values in measure(state.params, every):
          writer.write(step, name, values | {'seconds': run['seconds']})
          if name == 'eval':
            progress.update(step, eval_loss=values['loss'])

      def save_now():
        writer.sync()
        run_state.save(saved, step, state, batches.get_state(), dict(run))

      if resume < 0:
        evaluate_now()
      previous, since = None, (step, run['seconds'])
      while step < end:
        began = time.perf_counter()
        state, metrics = step_fn(state, partition.put_batch(next(batches)))
        step += 1
        # One step behind, so that the devices are never idle.
        _check_finite(previous, step - 1, saved)
        # A gradient can overflow where the loss does not.
        previous = metrics['total'] + metrics['gradient_norm']
        last, stop = step == end, watch.stop(step)
        log = last or step % log_every == 0
        evaluation = last or step % eval_every == 0
        checkpoint = last or stop or step % checkpoint_every == 0
        if log or evaluation or checkpoint:
          _check_finite(previous, step, saved)
        run['seconds'] += time.perf_counter() - began
        if log:
          steps, seconds = step - since[0], run['seconds'] - since[1]
          since = step, run['seconds']
          rate = cost.rate(batch, steps / seconds)
          values = jax.device_get(metrics | metrics.pop('layers')) | rate
          values['seconds'] = run['seconds']
          writer.write(step, 'train', values)
          progress.update(step, loss=values['loss'], **rate)
        progress.update(step)
        if stop:  # first, for there may be seconds left
          save_now()
        if evaluation:
          evaluate_now(last)
        if checkpoint and not stop:
          save_now()
        if stop and not last:
          raise preemption.Preempted(step)
  return state


def _evaluation(
  model: Any,
  step: Callable[..., losses.Sums],
  data: Iterable[Any] | None,
  batches: int | None,
  others: Mapping[str, Callable[..., dict[str, float]]] | None,
) -> Callable[[Any, bool], Iterator[tuple[str, dict[str, float]]]]:
  """From parameters to what is evaluated by name, the others if asked to."""

  def measure(params, every):
    if data is not None:
      first = itertools.islice(data, batches)
      yield 'eval', evaluate.timed(step, params, first)
    for name, evaluation in (others or {}).items() if every else ():
      yield name, evaluation(model, params)

  return measure


def _write_down(folder: Path, text: str, receipt: dict | None) -> None:
  """The run's config, and the receipt of what it starts from."""
  results.check_folder(folder, text)
  if jax.process_count() > 1:  # nobody looks while the first one writes
    multihost_utils.sync_global_devices('config')
  if jax.process_index() == 0:
    results.write_text(folder / results.CONFIG, text)
    if receipt is not None:
      text = json.dumps(receipt, indent=2)
      results.write_text(folder / 'receipt.json', text)


def _check_numbers(
  num_steps: int, parts: int, intervals: tuple[int | None, ...], batch: Any
) -> None:
  given = [n for n in (num_steps, parts, *intervals) if n is not None]
  if min(given) < 1:
    raise ValueError(
      f'num_steps {num_steps}, microbatches {parts} and the steps between '
      f'logs, evaluations and checkpoints {intervals} are at least 1.'
    )
  _, evaluate, further, _ = intervals
  if further and further % evaluate:
    raise ValueError(
      f'evaluations_every {further} is no multiple of eval_every {evaluate}.'
    )
  rows, devices = (
    len(jax.tree.leaves(batch)[0]),
    partition.size('data', 'expert'),
  )
  if rows % (parts * devices):
    raise ValueError(
      f'{parts} microbatches on {devices} devices do not divide {rows} rows.'
    )


def _check_finite(value: jax.Array | None, step: int, saved: Any) -> None:
  """Waits for a step's number, and stops the run if it is not finite."""
  if value is not None and not np.isfinite(value):
    raise FloatingPointError(
      f'The loss or gradient of step {step} is not finite: stopped. The newest '
      f'checkpoint is of step {saved.latest_step()}; try a smaller learning '
      'rate from there.'
    )
