# SPDX-License-Identifier: Apache-2.0
"""From examples to batches for an encoder-decoder, by Grain.

A batch is a dict of arrays with the names of T5X and SeqIO; B rows a process:
  encoder_input_tokens   int32 [B, L]    inputs, EOS, then 0
  decoder_target_tokens  int32 [B, T]    targets, EOS, then 0
  decoder_input_tokens   int32 [B, T]    targets one to the right, first 0
  decoder_loss_weights   float32 [B, T]  1 where there is a target
and, if packed, encoder_ and decoder_ segment_ids (from 1; 0 is padding) and
positions (from 0 in each segment), int32.

Iterators have get_state() and set_state(), a small dict, and go on exactly.
The stream of examples depends on the seed alone: with n processes, process i
gets examples i, i + n, ... of it.
"""

from collections.abc import Callable, Sequence
import functools

import grain
from jaxtyping import Int32
import numpy as np

Example = dict[str, np.ndarray]  # inputs, targets: int32, of any length
Batch = dict[str, np.ndarray]


def shard(
  batch_size: int, index: int | None, count: int | None
) -> tuple[int, int, int]:
  """(process, processes, rows of this process); None asks JAX."""
  if index is None or count is None:
    import jax  # only here: the pipeline itself needs no JAX

    index, count = jax.process_index(), jax.process_count()
  if batch_size % count or not 0 <= index < count:
    raise ValueError(
      f'batch_size {batch_size} cannot be shared by {count} processes '
      f'(this is number {index}): take a multiple.'
    )
  return index, count, batch_size // count


def batches(
  source: Sequence,
  transform: Callable[..., Example],
  *,
  lengths: dict[str, int],
  what: str,
  batch_size: int,
  packed: bool,
  seed: int,
  repeat: bool,
  shuffle: bool,
  shard_index: int | None,
  shard_count: int | None,
) -> grain.IterDataset:
  """Source, order, examples, shard, packing, batches: one Grain pipeline."""
  index, count, rows = shard(batch_size, shard_index, shard_count)
  if not len(source):
    raise ValueError(f'{what} holds less than one text: shorten the inputs.')
  ds = grain.MapDataset.source(source).seed(seed)
  ds = ds.shuffle() if shuffle else ds
  ds = ds.repeat() if repeat else ds
  # Before the shards are taken, so that masks do not depend on their number.
  ds = ds.random_map(transform)
  if repeat:
    ds, size, mine = ds[index::count], rows, slice(None)
  else:  # every process reads all and keeps its rows: as many batches for all
    size, mine = batch_size, slice(index, None, count)
  stack = functools.partial(_stack, size, lengths, mine)
  batch = {'batch_size': size, 'batch_fn': stack, 'drop_remainder': repeat}
  # Numpy work takes one thread far less time than a training step takes.
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
  if not packed:
    return ds.batch(**batch).to_iter_dataset(options)
  ds = grain.experimental.FirstFitPackIterDataset(
    ds.to_iter_dataset(options),
    length_struct=lengths,
    num_packing_bins=max(size, 16),
    shuffle_bins=False,
  )
  return grain.experimental.ThreadPrefetchIterDataset(
    ds.batch(**batch), prefetch_buffer_size=4
  )


def _stack(
  rows: int,
  lengths: dict[str, int],
  mine: slice,
  examples: Sequence[Example],
) -> Batch:
  """Pads to `rows` rows, those that are missing all zeros, and takes `mine`."""

  def stack(name, length):
    out = np.zeros((rows, length), np.int32)
    for row, example in zip(out, examples, strict=False):
      row[: len(example[name])] = example[name]
    return out[mine]

  arrays = {
    f'{name}{suffix}': stack(f'{name}{suffix}', length)
    for name, length in lengths.items()
    for suffix in ('', '_segment_ids', '_positions')
    if f'{name}{suffix}' in examples[0]
  }
  return model_batch(**arrays)


def model_batch(
  inputs: Int32[np.ndarray, 'B L'],
  targets: Int32[np.ndarray, 'B T'],
  **packing: Int32[np.ndarray, 'B _'],
) -> Batch:
  """Inputs and targets, 0 where padded, under the names of the model.

  Args:
    packing: inputs_ and targets_ segment_ids and positions, or nothing.
  """
  shifted = np.zeros_like(targets)
  shifted[:, 1:] = targets[:, :-1]
  if packing:  # no segment begins with the end of the one before
    shifted[packing['targets_positions'] == 0] = 0
  names = {'inputs': 'encoder', 'targets': 'decoder'}
  return {
    'encoder_input_tokens': inputs,
    'decoder_target_tokens': targets,
    'decoder_input_tokens': shifted,
    'decoder_loss_weights': (targets > 0).astype(np.float32),
  } | {
    f'{names[side]}_{what}': array
    for key, array in packing.items()
    for side, what in [key.split('_', 1)]
  }
