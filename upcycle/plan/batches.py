# SPDX-License-Identifier: Apache-2.0
"""The shapes of a config's batches, told without reading data."""

from collections.abc import Callable, Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from upcycle import partition
from upcycle.data import denoising

Shapes = dict[str, jax.ShapeDtypeStruct]
Argument = Callable[[str], Any]


def text(
  rows: int, lengths: Mapping[str, int], *, packed: bool = False
) -> Shapes:
  """Batches for an encoder-decoder: [rows, length], see `data.batches`."""
  inputs, targets = (
    jax.ShapeDtypeStruct((rows, lengths[side]), jnp.int32)
    for side in ('inputs', 'targets')
  )
  weights = jax.ShapeDtypeStruct(targets.shape, jnp.float32)
  found = {
    'encoder_input_tokens': inputs,
    'decoder_target_tokens': targets,
    'decoder_input_tokens': targets,
    'decoder_loss_weights': weights,
  }
  for name in ('segment_ids', 'positions') if packed else ():
    found |= {f'encoder_{name}': inputs, f'decoder_{name}': targets}
  return found


def images(rows: int, config: Any, *, labels: int = 1) -> Shapes:
  """Batches of labelled images for a ViT's config, see `data.images`."""
  image = (config.image_size, config.image_size, config.channels)

  def shape(*axes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, *axes), dtype)

  return {
    'images': shape(*image),
    'labels': shape(labels, dtype=jnp.int32),
    'label_weights': shape(labels),
    'weights': shape(),
  }


def _of_seqio(get: Argument, config: Any, rows: int) -> Shapes:
  from upcycle.data import seqio_tasks

  lengths = get('task_feature_lengths') or seqio_tasks.LENGTHS
  return text(rows, lengths, packed=get('packed'))


def _of_spans(get: Argument, config: Any, rows: int) -> Shapes:
  inputs, targets = get('inputs_length'), get('targets_length')
  density = get('noise_density'), get('mean_noise_span_length')
  # How many sentinels a corpus has is checked when it is read.
  need = denoising.lengths(inputs, *density, extra_ids=inputs)
  lengths = {'inputs': inputs, 'targets': targets or need.targets}
  return text(rows, lengths, packed=get('packed'))


def _of_pairs(get: Argument, config: Any, rows: int) -> Shapes:
  lengths = {s: get(f'{s}_length') for s in ('inputs', 'targets')}
  return text(rows, lengths, packed=get('packed'))


def _of_images(get: Argument, config: Any, rows: int) -> Shapes:
  labels = get('num_labels') * (1 if get('mixup') is None else 2)
  return images(rows, config, labels=labels)


# By the name of the function of upcycle.data that makes the batches.
SOURCES: dict[str, Callable[[Argument, Any, int], Shapes]] = {
  'seqio_tasks.seqio_mixture': _of_seqio,
  'text.span_corruption': _of_spans,
  'text.text_pairs': _of_pairs,
  'images.batches': _of_images,
}


def of_source(
  name: str,
  get: Argument,
  config: Any,
  rows: int | None = None,
  lengths: Mapping[str, int] | None = None,
) -> Shapes:
  """Shapes of the batches that a function of `upcycle.data` makes.

  Args:
    name: a key of SOURCES; another function will do if rows, and of text
      lengths, are given.
    get: what each argument of that function is.
    config: of the model.
    rows: in place of the function's batch_size.
    lengths: of 'inputs' and 'targets', in place of its own.

  Raises:
    ValueError: another function, or lengths of images.
  """
  is_text = hasattr(config, 'vocab_size')
  if lengths and not (is_text and len(lengths) == 2):
    raise ValueError(
      '--lengths=inputs:512,targets:114 is for text, and names both; images '
      "have their model's size."
    )
  if name not in SOURCES and not (rows and (lengths or not is_text)):
    raise ValueError(
      f'train.train.train_data is {name}, whose batches cannot be told without '
      f'reading data ({", ".join(SOURCES)} can): give --batch_size and, of '
      'text, --lengths=inputs:512,targets:114.'
    )
  if lengths:
    return text(rows or get('batch_size'), lengths)
  if name not in SOURCES:
    return images(rows, config)
  return SOURCES[name](get, config, rows or get('batch_size'))


def on_mesh(shapes: Shapes) -> Shapes:
  """The same, with shardings: rows over the current mesh's devices.

  Raises:
    ValueError: the devices do not divide the rows.
  """
  mesh = partition.mesh()
  shards = math.prod(mesh.shape[axis] for axis in partition.TOKENS)
  rows = next(iter(shapes.values())).shape[0]
  if rows % shards:
    raise ValueError(
      f'{shards} devices cannot share {rows} rows of a batch evenly: '
      f'--batch_size={math.ceil(rows / shards) * shards}, or a longer model '
      'axis.'
    )
  sharding = NamedSharding(mesh, P(partition.TOKENS))
  return {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    for name, x in shapes.items()
  }
