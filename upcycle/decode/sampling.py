# SPDX-License-Identifier: Apache-2.0
"""One token after the other: the likeliest, or drawn."""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from upcycle.decode.base import EOS, Cache, Decoded, Step, grouped, take


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Draws each token from the model's distribution, or takes the likeliest.

  Attributes:
    temperature: that logits are divided by; 0 takes the most probable token.
    top_k: only that many most probable tokens; 0: all.
    top_p: only the fewest most probable tokens whose probabilities sum to it
      (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020).
    rows: sequences for each row of inputs.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  rows: int = 1

  def __post_init__(self):
    if (
      min(self.temperature, self.top_k) < 0
      or not 0 < self.top_p <= 1
      or self.rows < 1
    ):
      raise ValueError(
        'Sampling takes a temperature and top_k of 0 or more, a top_p in '
        f'(0, 1] and at least one row, not {self}.'
      )
    given = [
      field.name
      for field in dataclasses.fields(self)
      if getattr(self, field.name) != field.default
    ]
    if given and not self.temperature:
      raise ValueError(
        'At temperature 0 each token is the most probable one, whatever '
        f'{", ".join(given)} may be: set a temperature, or leave them out.'
      )

  def __call__(
    self,
    step: Step,
    start: Int[Array, ' R'],
    cache: Cache,
    max_length: int,
    key: jax.Array,
  ) -> Decoded:
    R = len(start)

    def going(state):
      i, _, _, ended, _, _ = state
      return (i < max_length) & ~ended.all()

    def body(state):
      i, tokens, last, ended, score, cache = state
      logits, cache = step(last, i, cache)
      new = self.draw(logits, jax.random.fold_in(key, i))
      new = jnp.where(ended, 0, new).astype(jnp.int32)
      logs = jax.nn.log_softmax(logits)
      log = jnp.take_along_axis(logs, new[:, None], axis=1)[:, 0]
      score += jnp.where(ended, 0, log)
      tokens = tokens.at[:, i].set(new)
      return i + 1, tokens, new, ended | (new == EOS), score, cache

    state = (
      *(jnp.int32(0), jnp.zeros((R, max_length), jnp.int32), start),
      *(start == EOS, jnp.zeros(R), cache),
    )
    _, tokens, _, _, score, _ = lax.while_loop(going, body, state)
    tokens, score = (grouped(x, self.rows) for x in (tokens, score))
    best = jnp.argsort(-score, axis=1)
    return Decoded(take(tokens, best), take(score, best))

  def draw(
    self, logits: Float[Array, 'R V'], key: jax.Array
  ) -> Int[Array, ' R']:
    """One token of each row."""
    if not self.temperature:
      return logits.argmax(-1)
    logits /= self.temperature
    if self.top_k:
      least = lax.top_k(logits, min(self.top_k, logits.shape[-1]))[0][:, -1:]
      logits = jnp.where(logits < least, -jnp.inf, logits)
    if self.top_p < 1:
      logits = jnp.where(nucleus(logits, self.top_p), logits, -jnp.inf)
    return jax.random.categorical(key, logits)


def nucleus(logits: Float[Array, 'R V'], p: float) -> Bool[Array, 'R V']:
  """The fewest most probable tokens whose probabilities sum to p or more."""
  order = jnp.argsort(-logits, axis=-1)
  probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
  kept = jnp.cumsum(probs, axis=-1) - probs < p
  return jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)


GREEDY = Sampling()
