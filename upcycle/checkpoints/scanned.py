# SPDX-License-Identifier: Apache-2.0
"""Undoes T5X's scan over layers: one stacked array becomes one a layer.

A scanned stack is `encoder/encoder/...`, its layers on axis 1; in an MoE stack
a scanned block is several layers, `encoder/encoder/subblock_j/...`.
"""

from collections.abc import Iterable
import itertools
import re

import numpy as np

from upcycle.checkpoints.arrays import LazyArray

Flat = dict[str, LazyArray]
_STACKED = re.compile(r'(encoder|decoder)/\1/(?:subblock_(\d+)/)?(.+)')
_LAYER_AXIS = 1


def is_scanned(params: Iterable[str]) -> bool:
  return any(_STACKED.fullmatch(path) for path in params)


def unstack(params: Flat, slots: Flat) -> tuple[Flat, Flat]:
  """Parameters and Adafactor slots by layer; those of no stack stay as is.

  A slot has its parameter's axes but those it is the mean over, which tells
  where its layer axis is. T5X names the slots of scanned matrices by logical
  axes, those of others by size: `v_row` lacks the longer axis (the second of
  equals). The names returned are the latter ones.

  Raises:
    ValueError: the layer axis of a slot cannot be told; lists all such slots.
  """
  split = _Splitter(params)
  layers = {}
  for path, leaf in params.items():
    layers |= split(path, leaf, _LAYER_AXIS)
  slot_layers, unclear = {}, []
  for path, leaf in slots.items():
    param, name = path.rsplit('/', 1)
    if not _STACKED.fullmatch(param):
      slot_layers[path] = leaf
      continue
    kept = _kept_axes(params[param].shape, leaf.shape)
    if len({axes.index(_LAYER_AXIS) for axes in kept}) != 1:
      unclear.append(f'{path}: {leaf.shape} of {params[param].shape}')
      continue
    name = _slot_name(name, params[param].shape, kept[0])
    slot_layers |= split(f'{param}/{name}', leaf, kept[0].index(_LAYER_AXIS))
  if unclear:
    raise ValueError(
      'The layer axis of these optimizer slots cannot be told:\n  '
      + '\n  '.join(unclear)
    )
  return layers, slot_layers


class _Splitter:
  """Splits a leaf of a stack by layer; knows the stacks' layers in a block."""

  def __init__(self, params: Iterable[str]):
    blocks = {}
    for path in params:
      if match := _STACKED.fullmatch(path):
        stack, sub, _ = match.groups()
        blocks.setdefault(stack, set()).add(int(sub or 0))
    self.layers_a_block = {s: len(subs) for s, subs in blocks.items()}

  def __call__(self, path: str, leaf: LazyArray, axis: int) -> Flat:
    match = _STACKED.fullmatch(path)
    if not match:
      return {path: leaf}
    stack, sub, rest = match.groups()
    stride, first = self.layers_a_block[stack], int(sub or 0)
    layers = [_layer(leaf, axis, i) for i in range(leaf.shape[axis])]
    if rest.startswith('relpos_bias/') and _all_equal(layers):
      # A scanned stack has no place for the bias that its layers share.
      return {f'{stack}/{rest}': layers[0]}
    return {
      f'{stack}/layers_{i * stride + first}/{rest}': layer
      for i, layer in enumerate(layers)
    }


def _layer(leaf: LazyArray, axis: int, position: int) -> LazyArray:
  """One slice of a leaf; reads no other since `read` takes an index here."""
  shape = leaf.shape[:axis] + leaf.shape[axis + 1 :]
  index = (slice(None),) * axis + (position,)
  return LazyArray(shape, leaf.dtype, lambda: leaf.read(index))


def _all_equal(leaves: list[LazyArray]) -> bool:
  first = np.asarray(leaves[0])
  return all(np.array_equal(first, np.asarray(x)) for x in leaves[1:])


def _kept_axes(shape: tuple, slot_shape: tuple) -> list[tuple[int, ...]]:
  """All choices of axes of `shape`, the layer axis among them, that fit."""
  return [
    axes
    for axes in itertools.combinations(range(len(shape)), len(slot_shape))
    if _LAYER_AXIS in axes and tuple(shape[a] for a in axes) == slot_shape
  ]


def _slot_name(name: str, shape: tuple, kept: tuple[int, ...]) -> str:
  lost = set(range(len(shape))) - set(kept)
  if len(shape) != 3 or len(lost) != 1:
    return name
  longer = 2 if shape[2] >= shape[0] else 0
  return 'v_row' if longer in lost else 'v_col'
