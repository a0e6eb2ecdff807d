# SPDX-License-Identifier: Apache-2.0
"""A training step compiled for devices that are not there."""

import functools
import math
import re
import time
from typing import Any, NamedTuple

import jax
import optax

from upcycle import flops, initialize, partition, train_step
from upcycle.plan import hlo

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_NUMBER = r'([\d.]+)([KMGT]?)'
# The TPU compiler's two ways to say it. The second one's "temporaries" are all
# that is on a device: a program of arguments and results alone says it too.
_OVERFLOW = re.compile(
  rf'(?:Used {_NUMBER} of|\({_NUMBER}\) exceeds available HBM) '
  rf'\(?{_NUMBER}(?: hbm|\))'
)


class Size(NamedTuple):
  """Numbers and bytes of a tree of arrays.

  Attributes:
    count: numbers in all.
    bytes: in all.
    bytes_per_device: of the parts that one device holds.
  """

  count: int
  bytes: int
  bytes_per_device: int


class Memory(NamedTuple):
  """Bytes of one device, as the compiler lays them out.

  Attributes:
    arguments: state and batch.
    temporaries: all else; None where the program does not fit.
    peak: of what is alive at once; None likewise.
    needed: the larger of peak and of arguments and temporaries together, or
      what the compiler asked for in vain.
    available: what there is, by the compiler's own word; None if it fits.
  """

  arguments: int
  temporaries: int | None
  peak: int | None
  needed: int
  available: int | None


class Program(NamedTuple):
  """What the compiler says of a step.

  Attributes:
    memory: of a device.
    flops: operations of a device, loops counted once; None if it does not fit
      or the compiler does not say.
    traffic: bytes of a device that instructions read and write, likewise.
    matmuls: operations of all devices' matrix products, loops repeated.
    collectives: of a device; () if it does not fit.
    compile_seconds: of tracing, lowering and compiling.
  """

  memory: Memory
  flops: float | None
  traffic: float | None
  matmuls: int
  collectives: tuple[hlo.Collective, ...]
  compile_seconds: float


def state_shapes(
  model: Any, optimizer: optax.GradientTransformation
) -> initialize.TrainState:
  """Shapes of a training state, with shardings on the current mesh."""
  start = functools.partial(initialize.from_scratch, model, optimizer, 0)
  return jax.eval_shape(initialize.on_mesh(start))


def size(tree: Any) -> Size:
  """Of a tree of shapes with shardings: exact, nothing is compiled."""
  leaves = jax.tree.leaves(tree)
  mine = [(x, math.prod(x.sharding.shard_shape(x.shape))) for x in leaves]
  return Size(
    count=sum(x.size for x in leaves),
    bytes=sum(x.size * x.dtype.itemsize for x in leaves),
    bytes_per_device=sum(n * x.dtype.itemsize for x, n in mine),
  )


def compile_(step: Any, state: Any, batch: Any) -> Program:
  """Compiles a training step as training does, on the current mesh.

  Args:
    step: of `make_train_step`.
    state: shapes with shardings.
    batch: likewise.

  Raises:
    jax.errors.JaxRuntimeError: the compiler failed, but for want of memory.
  """
  began = time.perf_counter()
  # compile_step traces the same function, which is then at hand.
  matmuls = flops.matmuls(jax.jit(step).trace(state, batch).jaxpr)
  try:
    compiled = train_step.compile_step(step, state, batch)
  except jax.errors.JaxRuntimeError as error:
    memory = overflow(str(error), size((state, batch)).bytes_per_device)
    if memory is None:
      raise
    return Program(memory, None, None, matmuls, (), time.perf_counter() - began)
  # The CUDA compiler has no cost analysis without a GPU.
  cost = compiled.cost_analysis() or {}
  partitions = partition.mesh().size
  return Program(
    memory=_memory(compiled.memory_analysis()),
    flops=cost.get('flops'),
    traffic=cost.get('bytes accessed'),
    matmuls=matmuls,
    collectives=tuple(hlo.collectives(compiled.as_text(), partitions)),
    compile_seconds=time.perf_counter() - began,
  )


def _memory(found: Any) -> Memory:
  arguments, temporaries = (
    found.argument_size_in_bytes,
    found.temp_size_in_bytes,
  )
  # What is donated is written in place: of outputs only others take more.
  others = found.output_size_in_bytes - found.alias_size_in_bytes
  peak = found.peak_memory_in_bytes
  needed = max(peak, arguments + temporaries + others)
  return Memory(arguments, temporaries, peak, needed, None)


def overflow(error: str, arguments: int) -> Memory | None:
  """What the TPU compiler says of a program that does not fit; else None.

  Args:
    error: the compiler's message.
    arguments: bytes of state and batch on a device.
  """
  found = _OVERFLOW.search(error)
  if 'RESOURCE_EXHAUSTED' not in error or not found:
    return None
  numbers = [x for x in found.groups() if x is not None]
  used, of = (
    int(float(number) * _UNITS[unit])
    for number, unit in zip(numbers[::2], numbers[1::2], strict=True)
  )
  return Memory(arguments, None, None, used, of)
