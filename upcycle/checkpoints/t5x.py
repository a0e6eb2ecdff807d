# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of T5X, read and written: a msgpack index and zarr arrays.

`checkpoint_<step>/checkpoint` is the index: the train state, whose leaves are
small arrays, or TensorStore specs of arrays in folders beside the index.
"""

from collections.abc import Callable, Mapping
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from upcycle import trees
from upcycle.checkpoints import folders, scanned, stores, t5x_index
from upcycle.checkpoints.arrays import Checkpoint, LazyArray

INDEX = 'checkpoint'


def detect(path: str) -> bool:
  """Whether a path is an index, its folder, or a folder of such folders."""
  if os.path.isfile(path):
    return os.path.basename(path) == INDEX
  found = stores.names(path)
  is_index = not os.path.isdir(os.path.join(path, INDEX))
  return (INDEX in found and is_index) or bool(_steps(found))


def read(path: str) -> Checkpoint:
  """Reads a T5X checkpoint, scanned or not, dense or sparse.

  Args:
    path: the folder `checkpoint_<step>` or the index in it, or the folder of
      several of which the newest is taken; local or gs://.

  Raises:
    ValueError: the index cannot be read, or arrays or chunks of arrays are
      missing or truncated, all of which it lists.
  """
  root, newest_of = _root(path)
  index = t5x_index.unpack(stores.read_file(root, INDEX), f'{root}/{INDEX}')
  leaves = _leaves(root, index.get('optimizer', index))
  params = _below('target/', leaves)
  slots = _below('state/param_states/', leaves)
  if not params or 'state/step' not in leaves:
    raise ValueError(
      f"{root}/{INDEX} has no 'target' or no 'state/step': it is not the index "
      f'of a T5X train state. Its first names: {sorted(leaves)[:5]}.'
    )
  metadata = {'format': 'T5X', 'path': root, 'version': index.get('version', 0)}
  if newest_of:
    metadata['newest_of'] = newest_of
  is_adafactor = all(p.rsplit('/', 1)[0] in params for p in slots)
  if not is_adafactor:
    metadata['optimizer'] = f'not Adafactor: its {len(slots)} arrays left out'
  slots = _in_use(params, slots) if is_adafactor else {}
  metadata['scanned'] = scanned.is_scanned(params)
  params, slots = scanned.unstack(params, slots)
  metadata['model'] = model_facts(params)
  return Checkpoint(
    trees.unflatten(params),
    int(np.asarray(leaves['state/step'])),
    trees.unflatten(slots) or None,
    metadata,
  )


def _steps(names: set[str]) -> list[int]:
  found = (re.fullmatch(r'checkpoint_(\d+)', name) for name in names)
  return sorted(int(match[1]) for match in found if match)


def _root(path: str) -> tuple[str, list[int]]:
  """The folder of the index; the steps there if it was the newest of many."""
  path = path.rstrip('/')
  if os.path.isfile(path):
    return os.path.dirname(path), []
  found = stores.names(path)
  if INDEX in found:
    return path, []
  steps = _steps(found)
  return f'{path}/checkpoint_{steps[-1]}', steps


def _leaves(root: str, tree: Mapping[str, Any]) -> dict[str, LazyArray]:
  """Every leaf of the train state by path, none of them read."""
  flat = trees.flatten(t5x_index.mark_stored(tree))
  stored = [x for x in flat.values() if isinstance(x, t5x_index.Stored)]
  arrays = stores.read_arrays(
    root,
    [x.name for x in stored],
    {x.name: x.shape for x in stored if x.shape is not None},
  )

  def leaf(value):
    if isinstance(value, t5x_index.Stored):
      return arrays[value.name]
    array = np.asarray(value)
    return LazyArray(array.shape, array.dtype, lambda index=...: array[index])

  return {path: leaf(x) for path, x in flat.items() if x is not None}


def _below(prefix: str, flat: Mapping[str, Any]) -> dict[str, Any]:
  return {p[len(prefix) :]: x for p, x in flat.items() if p.startswith(prefix)}


def _in_use(params: Mapping, slots: Mapping) -> dict[str, LazyArray]:
  """The slots without the zeros of shape (1,) that stand for unused ones."""
  return {
    path: x
    for path, x in slots.items()
    if x.shape != (1,) or params[path.rsplit('/', 1)[0]].shape == (1,)
  }


def model_facts(params: Mapping[str, Any]) -> dict[str, Any]:
  """The arguments of a `T5Config` as far as names and shapes tell them.

  The activation is not in a T5X checkpoint: gated means gelu as in T5 1.1,
  otherwise relu as in T5 1.0. Empty if the parameters are not a T5's.

  Args:
    params: flat, not scanned.
  """
  mlp = r'encoder/layers_\d+/mlp/(?:expert/)?wi(_0)?/kernel'
  wi = {p: m for p in params if (m := re.fullmatch(mlp, p))}
  table = params.get('token_embedder/embedding')
  bias = params.get(
    'encoder/relpos_bias/rel_embedding',
    params.get('encoder/layers_0/relpos_bias/rel_embedding'),
  )
  query = params.get('encoder/layers_0/attention/query/kernel')
  if not wi or table is None or bias is None or query is None:
    return {}
  path, match = next(iter(wi.items()))
  return {
    'vocab_size': table.shape[0],
    'emb_dim': table.shape[1],
    'num_heads': bias.shape[0],
    'num_encoder_layers': _depth('encoder', params),
    'num_decoder_layers': _depth('decoder', params),
    'head_dim': query.shape[1] // bias.shape[0],
    'mlp_dim': params[path].shape[-1],
    'mlp_activations': ('gelu', 'linear') if match[1] else ('relu',),
    'logits_via_embedding': 'decoder/logits_dense/kernel' not in params,
  }


def _depth(stack: str, params: Mapping[str, Any]) -> int:
  found = (re.match(rf'{stack}/layers_(\d+)/', path) for path in params)
  return max((int(match[1]) + 1 for match in found if match), default=0)


def write(
  path: str | os.PathLike,
  params: Mapping[str, Any],
  step: int,
  opt_state: Mapping[str, Any] | None = None,
  *,
  compression: str | None = None,
  overwrite: bool = False,
  progress: Callable[[str, int], None] | None = None,
) -> Path:
  """Writes a checkpoint that T5X restores, one leaf at a time.

  The leaves may be lazy, numpy's (views of np.broadcast_to too: no second copy
  of a leaf is made) or JAX's. All is written under a temporary name, renamed
  at the end. Without `opt_state` T5X can take it for inference, or for
  training with `fallback_to_scratch`.

  Args:
    path: the local folder that gets a `checkpoint_<step>`, or is named so.
    params: nested dict of arrays.
    step: the global step.
    opt_state: nested dict: path of a parameter, then its Adafactor slots.
    compression: None (the fastest to write and to read), 'gzip' (T5X's own),
      'zstd' or 'blosc'.
    overwrite: replaces what is there.
    progress: called with the name and the bytes of each array once written.

  Returns:
    The folder `checkpoint_<step>`.

  Raises:
    FileExistsError: there is one already and `overwrite` is not set.
    ValueError: unknown compression, a path named for another step, slots that
      are not Adafactor's, or too little room on the disk.
  """
  target = _target(path, step)
  index, arrays = t5x_index.plan(params, step, opt_state, compression)
  nbytes = sum(_nbytes(x) for _, x in arrays)
  with folders.writing(target, nbytes, overwrite=overwrite) as partial:
    for spec, array in arrays:
      stores.write_array(str(partial), spec, array)
      if progress:
        progress(spec['kvstore']['path'].rstrip('/'), _nbytes(array))
    stores.write_file(str(partial), INDEX, t5x_index.pack(index))
  return target


def _target(path: str | os.PathLike, step: int) -> Path:
  path = folders.local(path)
  named = re.fullmatch(r'checkpoint_(\d+)', path.name)
  if named and int(named[1]) != step:
    raise ValueError(f'{path} is named for another step than {step}.')
  return path if named else path / f'checkpoint_{step}'


def _nbytes(array: Any) -> int:
  return int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize
