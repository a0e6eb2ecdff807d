# SPDX-License-Identifier: Apache-2.0
"""All that can be said of a step on a topology, as one JSON object."""

from importlib import metadata
from typing import Any

import jax
import optax

from upcycle import losses, train_step
from upcycle.plan import advice, batches, estimate, program
from upcycle.plan.topologies import Topology

CPU_NOTE = (
  'Compiled for CPUs: parameters, optimizer and the number of all-to-alls are '
  'those of any devices in this mesh; memory, operations, traffic and other '
  'collectives are not those of an accelerator, and there is no step time.'
)
FLOPS_NOTE = (
  "The compiler's operations are of one device, count a loop's body once and "
  'elementwise operations too; matrix products are counted before compiling, '
  'over all devices, loops repeated. The larger of the two is taken, and '
  'memory traffic in the same proportion.'
)


def report(
  topology: Topology,
  mesh: jax.sharding.Mesh,
  model: Any,
  loss: Any,
  optimizer: optax.GradientTransformation,
  shapes: batches.Shapes,
  *,
  microbatches: int = 1,
) -> dict[str, Any]:
  """Compiles a training step and puts down what it takes.

  Args:
    topology: of the mesh's devices.
    mesh: of `partition.make_mesh`.
    model: a linen module.
    loss: of `losses`.
    optimizer: of `optim`.
    shapes: of a batch.
    microbatches: parts of it.

  Returns:
    Numbers by name, in bytes, operations and seconds, of a step; those of one
    device unless it says otherwise.

  Raises:
    ValueError: the mesh does not fit model or batch.
  """
  with jax.set_mesh(mesh):
    state = program.state_shapes(model, optimizer)
    batch = batches.on_mesh(shapes)
    step = train_step.make_train_step(
      model, loss, optimizer, microbatches=microbatches
    )
    made = program.compile_(step, state, batch)
    sizes = {
      'parameters': program.size(state.params),
      'optimizer': program.size(state.opt_state),
    }
  unit, amount = losses.count(shapes)
  return {
    'topology': topology.name,
    'devices': mesh.size,
    'mesh': dict(mesh.shape),
    'experts': sorted(set(model.num_experts())),
    'batch': {name: list(x.shape) for name, x in shapes.items()},
    unit: amount,
    'microbatches': microbatches,
    **{name: size._asdict() for name, size in sizes.items()},
    'memory': made.memory._asdict()
    | {'available': _available(topology, mesh, made)},
    'operations': _operations(made, mesh),
    'traffic': made.traffic,
    'collectives': estimate.by_kind(made.collectives),
    **_seconds(topology, mesh, made),
    **_fit(topology, mesh, model, sizes, made, shapes, microbatches),
    'compile_seconds': made.compile_seconds,
    'versions': _versions(topology),
  }


def _available(
  topology: Topology, mesh: Any, made: program.Program
) -> float | None:
  """Bytes of a device that a program can have."""
  if topology.chip is None or made.memory.available:
    return made.memory.available
  return topology.chip.usable * topology.chips / mesh.size


def _operations(made: program.Program, mesh: Any) -> dict[str, Any]:
  each = made.matmuls / mesh.size
  return {
    'compiler': made.flops,
    'matmuls': each,
    'taken': max(made.flops or 0, each),
    'all_devices': mesh.size * max(made.flops or 0, each),
    'note': FLOPS_NOTE,
  }


def _seconds(
  topology: Topology, mesh: Any, made: program.Program
) -> dict[str, Any]:
  if topology.chip is None or made.memory.temporaries is None:
    return {}
  flops = max(made.flops or 0, made.matmuls / mesh.size)
  least = 2 * (made.memory.arguments + made.memory.temporaries)
  traffic = made.traffic * flops / made.flops if made.flops else least
  devices = list(mesh.devices.flat)
  found = estimate.seconds(
    topology, devices, flops, traffic, least, made.collectives
  )
  return {
    'seconds': found._asdict(),
    'chip': topology.chip._asdict(),
    'assumptions': list(estimate.ASSUMPTIONS),
  }


def _fit(
  topology: Topology,
  mesh: Any,
  model: Any,
  sizes: dict[str, program.Size],
  made: program.Program,
  shapes: batches.Shapes,
  microbatches: int,
) -> dict[str, Any]:
  if topology.chip is None:
    return {'fits': None, 'verdict': CPU_NOTE, 'advice': []}
  held = {name: size.bytes_per_device for name, size in sizes.items()}
  facts = advice.Facts(
    topology=topology,
    mesh=dict(mesh.shape),
    num_experts=model.num_experts(),
    state=sum(held.values()),
    gradients=held['parameters'],
    needed=made.memory.needed,
    available=_available(topology, mesh, made),
    rows=next(iter(shapes.values())).shape[0],
    microbatches=microbatches,
    remat=model.config.remat,
  )
  return {
    'fits': facts.needed <= facts.available,
    'verdict': advice.verdict(facts),
    'advice': advice.advice(facts),
  }


def _versions(topology: Topology) -> dict[str, str]:
  compilers = {'tpu': 'libtpu', 'cuda': 'jax-cuda12-pjrt', 'cpu': 'jaxlib'}
  return {x: _version(x) for x in ('jax', compilers[topology.platform])}


def _version(package: str) -> str:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return 'unknown'
