# SPDX-License-Identifier: Apache-2.0
"""Beam search."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from upcycle.decode.base import EOS, START, Cache, Decoded, Step, grouped, take

NEVER = -1e9  # the score of what is not there


def by_length(length: Any, alpha: float) -> Any:
  """length**alpha, as Hugging Face penalises."""
  return length**alpha


def by_gnmt(length: Any, alpha: float) -> Any:
  """((5 + length) / 6)**alpha (Wu et al., 2016, section 7), as T5X does."""
  return ((5 + length) / 6) ** alpha


@dataclasses.dataclass(frozen=True)
class Beam:
  """The likeliest of the sequences that a beam finds.

  The rules are those of Hugging Face's `generate` with early_stopping=False: a
  row is done when no beam, at its present length, can beat its worst finished
  sequence.

  Attributes:
    rows: beams of each row of inputs, and sequences that are returned.
    alpha: the length penalty's exponent: above 0 long sequences gain.
    penalty: of a length, end token included, and alpha: scores are log
      probabilities divided by it.
  """

  rows: int = 4
  alpha: float = 0.6
  penalty: Callable[[Any, float], Any] = by_length

  def __post_init__(self):
    if self.rows < 1:
      raise ValueError(f'A beam search has at least one beam, not {self.rows}.')

  def __call__(
    self,
    step: Step,
    start: Int[Array, ' R'],
    cache: Cache,
    max_length: int,
    key: jax.Array,
  ) -> Decoded:
    del key
    B, N = len(start) // self.rows, self.rows

    def going(state):
      return (state.index < max_length) & state.open.any()

    def body(state):
      last = state.tokens[:, :, state.index - 1].reshape(-1)
      last = jnp.where(state.index == 0, START, last)
      logits, cache = step(last, state.index, state.cache)
      return self._next(state._replace(cache=cache), logits, max_length)

    nothing = jnp.zeros((B, N, max_length), jnp.int32)
    never = jnp.full((B, N), NEVER)
    # All beams are the same at first: only one of them counts.
    running, wanted = never.at[:, 0].set(0.0), start[::N] != EOS
    state = _Beams(
      *(jnp.int32(0), nothing, running, nothing, never, wanted, cache)
    )
    state = lax.while_loop(going, body, state)
    return Decoded(state.finished, state.finished_scores)

  def _next(
    self, state: '_Beams', logits: Float[Array, 'R V'], max_length: int
  ) -> '_Beams':
    """The state after one more token."""
    i, (B, N) = state.index, state.scores.shape
    logs = jax.nn.log_softmax(logits).reshape(B, N, -1)
    V = logs.shape[-1]
    scores = (state.scores[..., None] + logs).reshape(B, -1)
    # Half of twice as many may end, and N are left to go on.
    scores, best = lax.top_k(scores, 2 * N)
    beam, token = best // V, best % V
    tokens = take(state.tokens, beam).at[:, :, i].set(token)
    ends = (token == EOS) | (i + 1 == max_length)

    done = ends & (jnp.arange(2 * N) < N) & state.open[:, None]
    ratio = jnp.where(done, scores / self.penalty(i + 1.0, self.alpha), NEVER)
    finished = jnp.concatenate([state.finished_scores, ratio], axis=1)
    finished, kept = lax.top_k(finished, N)
    both = jnp.concatenate([state.finished, tokens], axis=1)

    running, on = lax.top_k(jnp.where(ends, NEVER, scores), N)
    reachable = running[:, 0] / self.penalty(i + 1.0, self.alpha)
    source = take(beam, on)
    return _Beams(
      i + 1,
      take(tokens, on),
      running,
      take(both, kept),
      finished,
      state.open & (reachable > finished[:, -1]),
      jax.tree.map(lambda x: _rows(x, source), state.cache),
    )


class _Beams(NamedTuple):
  """All that beam search knows after `index` tokens."""

  index: Int[Array, '']
  tokens: Int[Array, 'B N L']
  scores: Float[Array, 'B N']
  finished: Int[Array, 'B N L']
  finished_scores: Float[Array, 'B N']  # NEVER where none is
  open: Bool[Array, ' B']
  cache: Cache


def _rows(x: Array, beam: Int[Array, 'B N']) -> Array:
  """Rows of a cache, each from the beam that it goes on from."""
  return take(grouped(x, beam.shape[1]), beam).reshape(x.shape)
