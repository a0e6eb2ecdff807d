# SPDX-License-Identifier: Apache-2.0
"""What strategies of decoding share: their interface, and rows of rows.

A strategy is called as strategy(step, start, cache, max_length, key), where
`start` holds the first token of each row, EOS for rows that nobody asks for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, Shaped
import numpy as np

START, EOS = 0, 1

Cache = Any
# (last tokens [R], their index, cache) -> (logits [R, V], cache).
Step = Callable[
  [Int[Array, ' R'], Int[Array, ''], Cache], tuple[Float[Array, 'R V'], Cache]
]


class Decoded(NamedTuple):
  """What was generated for each row of inputs, the best first.

  Attributes:
    tokens: without the start token, 0 behind the end token.
    scores: log probability in nats, of a beam divided by its length's penalty.
  """

  tokens: Int[Array | np.ndarray, 'B N L']
  scores: Float[Array | np.ndarray, 'B N']


def grouped(x: Shaped[Array, '_ ...'], N: int) -> Shaped[Array, '_ N ...']:
  """The N rows of each row of inputs, which follow each other."""
  return x.reshape(-1, N, *x.shape[1:])


def take(x: Shaped[Array, 'B _ ...'], index: Int[Array, 'B n']) -> Array:
  """Of each row those of the second axis, [B, n, ...]."""
  return jax.vmap(lambda x, i: x[i])(x, index)
