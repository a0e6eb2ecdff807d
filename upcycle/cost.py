# SPDX-License-Identifier: Apache-2.0
"""What a run spends: operations of a step, parameters, on which machine."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import importlib.metadata
import os
from pathlib import Path
import platform
import re
import resource
import sys
from typing import Any

import jax

from upcycle import flops, losses, partition, results, trees

SPLIT = 'cost'
# What a step is made of.
VERSIONS = 'jax', 'jaxlib', 'flax', 'optax'


def of_run(
  model: Any,
  train_step: Callable[..., Any],
  eval_step: Callable[..., Any],
  state: Any,
  batch: losses.Batch,
) -> dict[str, int | str]:
  """The facts that a run writes down once.

  Nothing is traced for it alone: JAX keeps what it has traced, and compiling
  the same functions for the same shapes finds it.

  Args:
    model: a linen module.
    train_step: of `make_train_step`.
    eval_step: of `make_eval_step`.
    state: arrays, or shapes.
    batch: likewise.

  Returns:
    Operations of all devices' matrix products, `step_flops` of a training step
    and `forward_flops` of evaluating the same batch; `tokens` or `images` of
    it; parameters in all and `active`, see `active_parameters`; the machine.
  """
  step = jax.jit(train_step).trace(state, batch).jaxpr
  forward = eval_step.trace(state.params, batch).jaxpr
  unit, amount = losses.count(batch)
  return {
    'step_flops': flops.matmuls(step),
    'forward_flops': flops.matmuls(forward),
    unit: amount,
    'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
    'active_parameters': active_parameters(model, state.params),
    **machine(),
  }


def active_parameters(model: Any, params: trees.Tree) -> int:
  """Parameters that a token's computation goes through, on average.

  Of E experts these are as many as the model's `experts_per_token` says; all
  other parameters count, those of encoder and decoder alike.
  """
  experts = [r for r, names in partition.PARAMETERS if names[0] == 'expert']
  per_token = model.experts_per_token()
  active = 0.0
  for path, leaf in trees.flatten(params).items():
    share = 1.0
    if any(re.fullmatch(rule, path) for rule in experts):
      layer = next(x for x in per_token if path.startswith(f'{x}/'))
      share = min(per_token[layer] / leaf.shape[0], 1.0)
    active += share * leaf.size
  return round(active)


def machine() -> dict[str, int | str]:
  """Devices and their kind, this host's CPU and cores, versions."""
  return {
    'device': jax.devices()[0].device_kind,
    'devices': partition.mesh().size,
    'cpu': _cpu(),
    'cores': os.cpu_count() or 0,
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in VERSIONS},
  }


def _cpu() -> str:
  """Its name, of which Python knows only the family on Linux."""
  info = Path('/proc/cpuinfo')
  text = info.read_text() if info.exists() else ''
  found = re.search(r'^model name\s*: (.*)', text, re.MULTILINE)
  return found[1] if found else platform.processor() or platform.machine()


def peak_memory() -> dict[str, int | str]:
  """The most memory that this process has taken so far.

  Returns:
    `peak_memory` in bytes: of the fullest of its devices, `memory_of` 'device';
    or, where devices keep no count, as CPUs, of the process, 'host'.
  """
  counts = [device.memory_stats() or {} for device in jax.local_devices()]
  found = [count.get('peak_bytes_in_use', 0) for count in counts]
  if any(found):
    return {'peak_memory': max(found), 'memory_of': 'device'}
  return {'peak_memory': host_memory(), 'memory_of': 'host'}


def host_memory() -> int:
  """Bytes of memory that this process has had at most, not of its devices."""
  # Linux counts in KB, macOS in bytes.
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextlib.contextmanager
def written(
  writer: results.Writer, step: int, end: int, values: Mapping[str, Any]
) -> Iterator[None]:
  """Writes a run's cost at its beginning, and its peak memory at its end.

  Of one that diverges the error, for those who find the run without its log.

  Args:
    writer: of the run's metrics.
    step: that the run begins with or goes on from; there the line is written
      if the run has none or another, as on another machine.
    end: its last step; a run that is stopped before has no peak memory.
    values: of `of_run`.
  """
  writer.write_once(step, SPLIT, values)
  try:
    yield
  except FloatingPointError as error:
    writer.write(end, SPLIT, {**values, 'error': f'{error}'})
    raise
  if step < end:
    writer.write(end, SPLIT, {**values, **peak_memory()})


def rate(batch: losses.Batch, per_second: float) -> dict[str, float]:
  """{'tokens_per_second': ...} of so many batches a second, or of images."""
  unit, amount = losses.count(batch)
  return {f'{unit}_per_second': amount * per_second}
