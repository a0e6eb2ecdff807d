# SPDX-License-Identifier: Apache-2.0
"""Meshes of devices, and which part of every array a device holds.

A mesh has three axes: `expert`, over which the experts are spread; `data`, over
which experts are repeated; `model`, over which hidden layers, attention heads
and vocabularies are split. Rows of a batch and groups of tokens are spread over
`data` and `expert` together, so that no device computes what another does.

What a parameter's axes are is a table on its path, and where they go another.
"""

from collections.abc import Callable, Mapping, Sequence
import math
import re
from typing import Any

import jax
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

AXES = 'data', 'expert', 'model'
TOKENS = 'data', 'expert'

# Names of a parameter's axes by its path; the first rule that matches counts,
# and what none matches is on every device.
PARAMETERS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
  (r'.*/(expert/wi\w*|Moe/Mlp/Dense_0)/kernel', ('expert', 'embed', 'mlp')),
  (r'.*/(expert/wo|Moe/Mlp/Dense_1)/kernel', ('expert', 'mlp', 'embed')),
  (r'.*/Moe/Mlp/Dense_0/bias', ('expert', 'mlp')),
  (r'.*/Moe/Mlp/Dense_1/bias', ('expert', 'embed')),
  (r'.*/(mlp/wi\w*|MlpBlock_0/Dense_0)/kernel', ('embed', 'mlp')),
  (r'.*/(mlp/wo|MlpBlock_0/Dense_1)/kernel', ('mlp', 'embed')),
  (r'.*/MlpBlock_0/Dense_0/bias', ('mlp',)),
  (r'.*/(query|key|value)/kernel', ('embed', 'heads')),
  (r'.*/(query|key|value)/bias', ('heads',)),
  (r'.*/out/kernel', ('heads', 'embed')),
  (r'.*/relpos_bias/rel_embedding', ('heads',)),
  (r'token_embedder/embedding', ('vocab', 'embed')),
  (r'.*/logits_dense/kernel', ('embed', 'vocab')),
)
# The mesh axis that an axis is split over.
RULES: Mapping[str, str | None] = {
  'expert': 'expert',
  'mlp': 'model',
  'heads': 'model',
  'vocab': 'model',
  'embed': None,
}


def make_mesh(
  num_experts: Sequence[int] = (),
  *,
  data: int | None = None,
  expert: int | None = None,
  model: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """A mesh of all devices; what is not given is chosen.

  The expert axis is as long as the number of experts of every layer allows,
  within a slice of a pod: all-to-alls are fast there. Several slices share the
  data axis, on which only gradients travel.

  Args:
    num_experts: of each sparse layer.
    data: length of the data axis.
    expert: length of the expert axis; divides all numbers of experts.
    model: length of the model axis; at most a process's devices.
    devices: those to use; None: all.

  Raises:
    ValueError: the lengths do not multiply to the number of devices, do not
      divide the experts, or the model axis crosses processes.
  """
  devices = jax.devices() if devices is None else list(devices)
  n, experts = len(devices), math.gcd(*num_experts) or 1
  slices = len({_slice(d) for d in devices})
  if expert is None:
    room = n // (model * (data or slices))
    expert = room if data and not num_experts else math.gcd(room, experts)
  data = n // (model * expert) if data is None else data
  shape = data, expert, model
  if math.prod(shape) != n or min(shape) < 1:
    named = ', '.join(f'{a} {x}' for a, x in zip(AXES, shape, strict=True))
    raise ValueError(f'A mesh of {named} does not use {n} devices.')
  if num_experts and experts % expert:
    raise ValueError(
      f'An expert axis of {expert} does not divide {sorted(set(num_experts))} '
      f'experts: take a divisor of {experts}.'
    )
  if data % slices:
    raise ValueError(f'{slices} slices do not divide a data axis of {data}.')
  grid = _grid(devices, shape, slices)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slice(device: Any) -> int:
  """Of a TPU pod. JAX calls every host of GPUs one, which it need not be."""
  return getattr(device, 'slice_index', 0) if device.platform == 'tpu' else 0


def _grid(
  devices: Sequence[Any], shape: tuple[int, int, int], slices: int
) -> np.ndarray:
  """The devices in the order of the fastest links that rows allow."""
  data, *inner = shape
  make, lengths = mesh_utils.create_device_mesh, (shape,)
  if slices > 1:
    make = mesh_utils.create_hybrid_device_mesh
    lengths = (data // slices, *inner), (slices, 1, 1)
  grid = make(*lengths, devices, allow_split_physical_axes=True)
  if _crosses_processes(grid):
    # The fastest links matter less than that rows of a batch have one reader.
    order = lambda d: (_slice(d), d.process_index, d.id)  # noqa: E731
    grid = np.array(sorted(devices, key=order)).reshape(shape)
  if _crosses_processes(grid):
    raise ValueError(
      f'A model axis of {inner[1]} crosses processes, which read different '
      'rows of a batch: make it at most the devices of one.'
    )
  return grid


def _crosses_processes(grid: np.ndarray) -> bool:
  """Whether some model axis has devices of several processes."""
  groups = grid.reshape(-1, grid.shape[-1])
  return any(len({d.process_index for d in group}) > 1 for group in groups)


def current() -> AbstractMesh:
  """The mesh that `jax.set_mesh` has set, or an empty one."""
  return jax.sharding.get_abstract_mesh()


def size(*axes: str) -> int:
  """Devices along axes of the current mesh; 1 without one."""
  return math.prod(current().shape.get(axis, 1) for axis in axes)


def spread(x: jax.Array, heads: int | None = None) -> jax.Array:
  """The same x, rows over `data` and `expert`, axis `heads` over `model`."""
  rows = x.shape[0] % size(*TOKENS) == 0
  split = heads is not None and x.shape[heads] % size(RULES['heads']) == 0
  if size(*AXES) == 1 or not (rows or split):
    return x
  axes = [TOKENS if rows else None, *[None] * (x.ndim - 1)]
  if split:
    axes[heads] = RULES['heads']
  return lax.with_sharding_constraint(x, P(*axes))


def local(function: Callable[..., Any], in_specs: Any) -> Callable[..., Any]:
  """A function of what one device holds, as one of whole arrays.

  Args:
    function: its results are of a device's own tokens.
    in_specs: how its arguments are split over `data` and `expert`.
  """
  sharded = jax.shard_map(
    function,
    in_specs=in_specs,
    out_specs=P(TOKENS),
    axis_names=set(TOKENS),
    check_vma=False,
  )
  # The model axis is the compiler's, which a call outside of jit has not.
  return jax.jit(sharded)


def whole(x: jax.Array) -> jax.Array:
  """The same x, all of it on every device."""
  return x if size(*AXES) == 1 else lax.with_sharding_constraint(x, P())


def spec(path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> P:
  """How a parameter is split.

  An axis that a mesh axis does not divide stays whole.
  """
  names = next(
    (names for rule, names in PARAMETERS if re.fullmatch(rule, path)), ()
  )
  axes = [RULES[name] if name else None for name in names]
  return P(
    *(
      axis if axis and length % mesh.shape[axis] == 0 else None
      for axis, length in zip(axes, shape, strict=False)
    )
  )


def mesh() -> Mesh:
  """The mesh that `jax.set_mesh` has set, or one of a single device."""
  found = jax.sharding.get_mesh()
  return make_mesh(devices=jax.local_devices()[:1]) if found.empty else found


def replicated() -> NamedSharding:
  """All of an array on every device."""
  return NamedSharding(mesh(), P())


def over_rows() -> NamedSharding:
  """Rows of a batch over the devices that share them."""
  return NamedSharding(mesh(), P(TOKENS))


def shardings(state: Any) -> Any:
  """How a training state, or parameters alone, lie on the current mesh.

  What the optimizer keeps of a parameter is split as that is: an array of its
  shape, or of its shape but for one axis (Adafactor's rows and columns).

  Args:
    state: shapes, with the parameters in its field `params` if it has one.

  Returns:
    A tree like `state` of NamedSharding.
  """
  on, where = mesh(), 'params/' if hasattr(state, 'params') else ''
  leaves, structure = jax.tree_util.tree_flatten_with_path(state)
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
    for path, leaf in leaves
  }
  params = {
    path.removeprefix(where): shape
    for path, shape in shapes.items()
    if path.startswith(where)
  }

  def sharding(path: str, shape: tuple[int, ...]) -> NamedSharding:
    param = _parameter(path, params)
    if param is None:
      return NamedSharding(on, P())
    whole = spec(param, params[param], on)
    return NamedSharding(on, _reduced(whole, params[param], shape))

  found = [sharding(path, shape) for path, shape in shapes.items()]
  return jax.tree.unflatten(structure, found)


def _parameter(path: str, params: Mapping[str, Any]) -> str | None:
  """The parameter whose path is the longest part of this one."""
  parts = path.split('/')
  found = [
    name
    for i in range(len(parts))
    for j in range(i + 1, len(parts) + 1)
    if (name := '/'.join(parts[i:j])) in params
  ]
  return max(found, key=len, default=None)


def _reduced(whole: P, shape: Sequence[int], of: Sequence[int]) -> P:
  """A parameter's spec for an array that lacks one of its axes, or none."""
  axes = [*whole, *[None] * (len(shape) - len(whole))]
  if tuple(shape) == tuple(of):
    return P(*axes)
  for i in reversed(range(len(shape))):
    if (*shape[:i], *shape[i + 1 :]) == tuple(of):
      return P(*axes[:i], *axes[i + 1 :])
  return P()


def without_first(sharding: NamedSharding) -> NamedSharding:
  """Of what one expert has, as all experts' ones are split."""
  return NamedSharding(sharding.mesh, P(*sharding.spec[1:]))


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
  """What every process has, or reads here once; each keeps its part."""
  array = np.asarray(leaf)
  return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def put_batch(batch: Mapping[str, Any]) -> dict[str, jax.Array]:
  """The batch of all processes, each giving its rows, on the current mesh.

  Raises:
    ValueError: the devices do not divide the rows.
  """
  sharding = over_rows()
  shards = size(*TOKENS)
  rows = {len(x) * jax.process_count() for x in batch.values()}
  if any(n % shards for n in rows):
    raise ValueError(
      f'{shards} devices cannot share {sorted(rows)} rows of a batch evenly: '
      'take a multiple as batch size, or fewer devices.'
    )
  return {
    name: jax.make_array_from_process_local_data(sharding, np.asarray(x))
    for name, x in batch.items()
  }
