# SPDX-License-Identifier: Apache-2.0
"""The msgpack index of a T5X checkpoint: to and from a train state.

Its arrays are in flax's msgpack encoding, which is read and written here in a
few lines since importing flax takes JAX along.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import msgpack
import numpy as np

from upcycle import trees
from upcycle.checkpoints import stores

VERSION = 3
_SLOTS = ('m', 'v', 'v_col', 'v_row')
_ARRAY, _SCALAR = 1, 3
_PLACEHOLDER = 'PLACEHOLDER://'
_UNUSED = np.zeros(1, np.float32)


@dataclasses.dataclass(frozen=True)
class Stored:
  """A leaf that lies beside the index, in the folder `name`."""

  name: str
  shape: tuple[int, ...] | None


def mark_stored(node: Any) -> Any:
  """The tree with a `Stored` in place of each reference to an array.

  A reference is a TensorStore spec, whose path has been at two places in its
  time, or a string (Orbax). Only the folder's name counts, so that moved
  checkpoints can be read.
  """
  if isinstance(node, str) and node.startswith(_PLACEHOLDER):
    return Stored(node.removeprefix(_PLACEHOLDER), None)
  if not isinstance(node, Mapping):
    return node
  if {'driver', 'kvstore', 'metadata'} <= node.keys():
    path = node['kvstore'].get('path') or node['path']
    name = path.rstrip('/').rsplit('/', 1)[-1]
    return Stored(name, tuple(node['metadata']['shape']))
  return {key: mark_stored(value) for key, value in node.items()}


def unpack(content: bytes, where: str) -> dict[str, Any]:
  """Decodes an index; raises ValueError if it is truncated or another file."""
  if content.startswith(b'model_checkpoint_path'):
    raise ValueError(
      f'{where} belongs to a TensorFlow checkpoint; convert it with '
      "T5X's scripts first."
    )
  try:
    tree = msgpack.unpackb(content, ext_hook=_decode, strict_map_key=False)
    return _join_pieces(dict(tree))
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(
      f'{where} is truncated or no msgpack index ({error}); copy it again.'
    ) from error


def _decode(code: int, data: bytes) -> Any:
  if code not in (_ARRAY, _SCALAR):
    return msgpack.ExtType(code, data)
  shape, dtype, buffer = msgpack.unpackb(data, raw=True)
  array = np.frombuffer(buffer, dtype=stores.dtype(dtype.decode()))
  return array.reshape(shape)


def _join_pieces(node: Any) -> Any:
  """Puts arrays together that flax has split at the limit of msgpack."""
  if not isinstance(node, dict):
    return node
  if '__msgpack_chunked_array__' not in node:
    return {key: _join_pieces(value) for key, value in node.items()}
  in_order = [
    [part[str(i)] for i in range(len(part))]
    for part in (node['chunks'], node['shape'])
  ]
  return np.concatenate(in_order[0]).reshape(in_order[1])


def pack(tree: Mapping[str, Any]) -> bytes:
  return msgpack.packb(tree, default=_encode, strict_types=True)


def _encode(array: np.ndarray) -> msgpack.ExtType:
  content = (array.shape, array.dtype.name, array.tobytes())
  return msgpack.ExtType(_ARRAY, msgpack.packb(content))


def plan(
  params: Mapping[str, Any],
  step: int,
  opt_state: Mapping[str, Any] | None,
  compression: str | None,
) -> tuple[dict[str, Any], list[tuple[dict[str, Any], Any]]]:
  """The index of a train state, and (spec, leaf) of each array to write.

  Raises:
    ValueError: unknown compression, or slots that are not Adafactor's.
  """
  if compression not in stores.COMPRESSORS:
    raise ValueError(
      f'Unknown compression {compression!r}: '
      f'one of {", ".join(map(str, stores.COMPRESSORS))}.'
    )
  arrays = []

  def store(path: str, leaf: Any) -> dict[str, Any]:
    spec = stores.array_spec(path.replace('/', '.'), leaf, compression)
    arrays.append((spec, leaf))
    return spec

  flat = trees.flatten(params)
  tree = {
    f'target/{path}': store(f'target/{path}', x) for path, x in flat.items()
  }
  tree['state/step'] = np.asarray(step, np.int32)
  if opt_state is not None:
    slots = trees.flatten(opt_state)
    _check_slots(flat, slots)
    for slot in (f'{path}/{slot}' for path in flat for slot in _SLOTS):
      path = f'state/param_states/{slot}'
      tree[path] = store(path, slots[slot]) if slot in slots else _UNUSED
  return {'version': VERSION, 'optimizer': trees.unflatten(tree)}, arrays


def _check_slots(params: Mapping[str, Any], slots: Mapping[str, Any]) -> None:
  known = {f'{path}/{slot}' for path in params for slot in _SLOTS}
  having = {path.rsplit('/', 1)[0] for path in slots}
  problems = [f'no slot of a parameter: {p}' for p in slots.keys() - known]
  problems += [f'has no slot: {p}' for p in params.keys() - having]
  if problems:
    raise ValueError(
      'The optimizer state is not one of Adafactor for these parameters:\n  '
      + '\n  '.join(sorted(problems))
    )
