# SPDX-License-Identifier: Apache-2.0
"""From a batch of inputs to what a model generates for it."""

from collections.abc import Mapping
import functools
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jaxtyping import Array, Int
import numpy as np

from upcycle import partition
from upcycle.decode.base import EOS, START, Decoded
from upcycle.decode.beam import Beam
from upcycle.decode.sampling import GREEDY, Sampling


@functools.partial(jax.jit, static_argnames=('model', 'strategy', 'max_length'))
def generate(
  model: Any,
  params: Any,
  encoder_input_tokens: Int[Array, 'B K'],
  *,
  strategy: Sampling | Beam = GREEDY,
  max_length: int = 64,
  key: jax.Array | None = None,
) -> Decoded:
  """Generates tokens for a batch, compiled once for its shape.

  Args:
    model: an encoder-decoder such as `t5.T5`, dense or sparse; its decoder
      drops no token here.
    params: its parameters.
    encoder_input_tokens: inputs, 0 behind them.
    strategy: the default is greedy.
    max_length: most tokens to generate, the end token included.
    key: of what is drawn; None is a fixed one.
  """
  model, variables = model.serving(), {'params': params}
  rows = functools.partial(jnp.repeat, repeats=strategy.rows, axis=0)
  valid = rows(encoder_input_tokens > 0)
  encoded = rows(model.apply(variables, encoder_input_tokens, method='encode'))

  step = functools.partial(model.apply, max_length=max_length, method='step')

  # Rows that fill up a batch have ended: nobody waits for them.
  start = jnp.where(valid.any(axis=1), START, EOS).astype(jnp.int32)
  made = ['cache', 'memory']
  first = jnp.int32(0)
  _, kept = step(variables, start, first, valid, encoded, mutable=made)
  variables['memory'] = kept.pop('memory')  # one for all sequences of a row

  def next_step(tokens, index, cache):
    logits, new = step(
      *(variables | cache, tokens, index, valid), mutable=['cache']
    )
    return logits.astype(jnp.float32), new

  key = jax.random.key(0) if key is None else key
  return strategy(next_step, start, kept, max_length, key)


def on_mesh(
  model: Any,
  params: Any,
  inputs: Int[np.ndarray, 'B K'],
  *,
  strategy: Sampling | Beam = GREEDY,
  max_length: int = 64,
  key: jax.Array | None = None,
) -> Decoded:
  """`generate` for rows that every process has: all get all results, in numpy.

  Rows are filled up to what the current mesh's devices can share.
  """
  missing = -len(inputs) % partition.size(*partition.TOKENS)
  rows = np.pad(inputs, ((0, missing), (0, 0))).astype(np.int32)
  decoded = generate(
    *(model, params, partition.put(rows, partition.over_rows())),
    strategy=strategy,
    max_length=max_length,
    key=key,
  )
  if jax.process_count() > 1:
    decoded = multihost_utils.process_allgather(decoded, tiled=True)
  return jax.tree.map(lambda x: np.asarray(x)[: len(inputs)], decoded)


def predict(
  model: Any,
  params: Any,
  batch: Mapping[str, np.ndarray],
  *,
  strategy: Sampling | Beam = GREEDY,
  max_length: int = 64,
) -> Int[np.ndarray, 'B L']:
  """The best sequence for each row of a batch: what evaluators take."""
  inputs = batch['encoder_input_tokens']
  decoded = on_mesh(
    model, params, inputs, strategy=strategy, max_length=max_length
  )
  return decoded.tokens[:, 0]
