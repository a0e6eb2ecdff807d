# SPDX-License-Identifier: Apache-2.0
"""Layers whose gradient is written for speed, in float64."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np

from upcycle.models import layers


def test_over_batch_repeats_and_its_gradient_sums():
  with jax.enable_x64(True):
    bias, g = (
      jnp.asarray(np.random.RandomState(i).randn(n, 2, 3, 5))
      for i, n in enumerate((1, 7))
    )
    out, back = jax.vjp(lambda x: layers.over_batch(x, 7), bias)
    np.testing.assert_array_equal(out, jnp.broadcast_to(bias, g.shape))
    np.testing.assert_allclose(back(g)[0], g.sum(0, keepdims=True), rtol=1e-14)


def test_the_gradient_of_the_relative_position_bias():
  """Of attention with a mask, by differences."""
  rng = np.random.RandomState(0)
  with jax.enable_x64(True):
    x = jnp.asarray(rng.randn(3, 4, 6))
    allowed = jnp.asarray(rng.rand(3, 4, 4) < 0.7) | jnp.eye(4, dtype=bool)
    attention = layers.Attention(2, 3, dtype=jnp.float64)
    bias = jnp.asarray(rng.randn(1, 2, 4, 4))
    variables = attention.init(jax.random.key(0), x, x, allowed, bias)

    def loss(bias):
      # float32 softmax: differences see no more than its digits.
      bias = jnp.asarray(bias)
      out = attention.apply(variables, x, x, allowed, bias)
      return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    check_grads(loss, (bias,), 1, ['rev'], atol=1e-3, rtol=1e-3, eps=1e-2)
