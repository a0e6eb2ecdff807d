# SPDX-License-Identifier: Apache-2.0
"""ViT checkpoints in .npz files: those of vit_jax, big_vision and vmoe."""

from collections.abc import Mapping
import functools
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from upcycle import trees
from upcycle.checkpoints import naming, npz, stores, vit_facts
from upcycle.checkpoints.arrays import Checkpoint, LazyArray
from upcycle.checkpoints.vit_names import TABLES
from upcycle.checkpoints.vit_shapes import POSITIONS

SUFFIX = '.npz'
Flat = dict[str, LazyArray]
# Where in a training state the parameters are: with optax, with flax.optim.
_PREFIXES = ('params/', 'opt/target/')
_SCANNED = re.compile(r'(Transformer/encoderblock)/(.+)')
# All that is the same in these code bases and that arrays do not tell.
_FIXED = {'activation': 'gelu', 'norm_epsilon': 1e-6}


def detect(path: str) -> bool:
  """Whether a path, local or gs://, is named .npz."""
  return path.endswith(SUFFIX) and not os.path.isdir(path)


def read(path: str) -> Checkpoint:
  """Reads a ViT, dense or sparse, scanned or not; no optimizer state.

  The step is that of the optimizer where the file has one, otherwise 0.

  Raises:
    ValueError: the file is remote or damaged, or arrays have unknown names,
      shapes that do not fit together, or are missing; lists all of them.
  """
  if stores.is_remote(path):
    raise ValueError(
      f'{path}: an .npz file is read from a local disk; '
      'copy it there with `gcloud storage cp`.'
    )
  arrays = npz.leaves(path)
  named = _params(arrays)
  params, facts, table = convert(named, path)
  metadata = {'format': 'npz', 'path': path, 'names': table}
  metadata['scanned'] = any(map(_SCANNED.fullmatch, named))
  if len(arrays) > len(named):
    metadata['left_out'] = f'{len(arrays) - len(named)} arrays beside params'
  metadata['model'] = facts
  return Checkpoint(trees.unflatten(params), _step(arrays), None, metadata)


def convert(arrays: Flat, where: str) -> tuple[Flat, dict[str, Any], str]:
  """The parameters by path, the arguments of a `ViTConfig`, whose names it was.

  Args:
    arrays: parameters under the names of one of `TABLES`.
    where: the file, for messages.

  Raises:
    ValueError: as `read`.
  """
  layers = _unstack(arrays)
  table = max(TABLES, key=lambda name: _known(layers, TABLES[name]))
  params, problems = naming.rename(layers, TABLES[table])
  params = _with_class_position(params)
  where = f'{where} is no ViT of {" or ".join(TABLES)}'
  facts = vit_facts.check(params, where, problems)
  return params, facts | _FIXED, table


def _params(arrays: Flat) -> Flat:
  """Those of a training state that are parameters, or all."""
  for prefix in _PREFIXES:
    found = {
      k[len(prefix) :]: x for k, x in arrays.items() if k.startswith(prefix)
    }
    if found:
      return found
  return arrays


def _known(names: Mapping[str, Any], rules: trees.Rules) -> int:
  return sum(trees.rename(name, rules) is not None for name in names)


def _unstack(arrays: Flat) -> Flat:
  """One array a block in place of those that a scan has stacked."""
  blocks = {}
  for name, leaf in arrays.items():
    stacked = _SCANNED.fullmatch(name)
    if not stacked:
      blocks[name] = leaf
      continue
    for i in range(leaf.shape[0] if leaf.shape else 0):
      read = functools.partial(leaf.read, i)
      blocks[f'{stacked[1]}_{i}/{stacked[2]}'] = LazyArray(
        leaf.shape[1:], leaf.dtype, read
      )
  return blocks


def _with_class_position(params: Flat) -> Flat:
  """A position 0 for the class token, to which big_vision adds none."""
  positions = params.get(POSITIONS)
  if (
    'cls' not in params
    or positions is None
    or len(positions.shape) != 3
    or not vit_facts.is_square(positions.shape[1])
  ):
    return params
  one, patches, width = positions.shape
  padded = LazyArray(
    (one, patches + 1, width),
    positions.dtype,
    lambda: np.pad(positions.read(), ((0, 0), (1, 0), (0, 0))),
  )
  return params | {POSITIONS: padded}


def _step(arrays: Flat) -> int:
  """The largest counter of the optimizer; 0 if there is none."""
  counters = [
    x
    for name, x in arrays.items()
    if name.startswith('opt/') and not x.shape and x.dtype.kind in 'iu'
  ]
  return max((int(np.asarray(x)) for x in counters), default=0)


def unsaid(model: Mapping[str, Any]) -> dict[str, Any]:
  """What of a model's activation and norm_epsilon an .npz file cannot say."""
  return {k: v for k, v in model.items() if _FIXED.get(k, v) != v}


def write(
  path: str | os.PathLike,
  params: Mapping[str, Any],
  model: Mapping[str, Any] | None = None,
) -> Path:
  """Writes an .npz that vit_jax and big_vision load, as float32 if bfloat16.

  The leaves may be lazy, numpy's or JAX's; they are read one at a time. The
  file is there whole or not at all. Neither knows sparse blocks, vit_jax no
  MAP head; `read` knows both.

  Args:
    path: a local name that ends in .npz, by which big_vision goes.
    params: nested dict of arrays.
    model: the activation and norm_epsilon of the model, if known.

  Raises:
    FileExistsError: there is something at the path.
    ValueError: another name, parameters that are no ViT's, all listed, or a
      model of another function than these code bases have.
  """
  path = os.fspath(path)
  if not path.endswith(SUFFIX) or stores.is_remote(path):
    raise ValueError(f'{path} is no local name that ends in {SUFFIX}.')
  other = unsaid(model or {})
  if other:
    raise ValueError(
      f'{path} cannot say that its model has {other}: what reads .npz files '
      f"takes {_FIXED} for granted. The format 'orbax' (--format=orbax) can."
    )
  flat = trees.flatten(params)
  vit_facts.check(flat, f'Not written to {path} since it is no ViT')
  return npz.write(path, flat)
