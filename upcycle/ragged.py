# SPDX-License-Identifier: Apache-2.0
"""The experts' MLPs where each has a number of rows of its own.

All rests on one product, of rows with their experts' kernels. On accelerators
it is `lax.ragged_dot`. On CPUs, where that multiplies every row by every
expert, experts run one after the other, each on a window of rows, the least of
some static sizes that holds its own. All else is done to all rows at once.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from upcycle import experts


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def apply(
  activate: experts.Activate,
  mlp: experts.Mlp,
  x: Float[Array, 'G S M'],
  token: Int[Array, ' R'],
  weight: Float[Array, ' R'],
  sizes: Int[Array, ' E'],
  keep: Float[Array, 'E 1 F'] | None = None,
) -> Float[Array, 'G S M']:
  """Each token's sum over its rows of weight times its expert's output.

  Args:
    activate: from the pre-activations of each of wi to the hidden layer,
      element by element.
    mlp: all experts' parameters.
    x: tokens; what is computed is in their dtype.
    token: of a row, in [0, G * S); one expert's rows after the other's, then
      those in no expert.
    weight: of a row's output in the sum.
    sizes: rows of an expert.
    keep: factors of the experts' hidden layers: dropout.
  """
  return _forward(activate, mlp, x, token, weight, sizes, keep)[0]


def _forward(activate, mlp, x, token, weight, sizes, keep):
  pre = _into(token, sizes, mlp.wi, mlp.bi, x)
  out = _out_of(activate, token, sizes, x, mlp.wo, mlp.bo, weight, keep, pre)
  return out, (mlp, x, token, weight, sizes, keep, pre)


def _backward(activate, saved, g):
  mlp, x, token, weight, sizes, keep, pre = saved
  # The compiler drops the forward passes: no gradient needs their results.
  _, out_of = jax.vjp(
    functools.partial(_out_of, activate, token, sizes, x),
    *(mlp.wo, mlp.bo, weight, keep, pre),
  )
  dwo, dbo, dweight, dkeep, dpre = out_of(g)
  _, into = jax.vjp(functools.partial(_into, token, sizes), mlp.wi, mlp.bi, x)
  dwi, dbi, dx = into(dpre)
  return experts.Mlp(dwi, dbi, dwo, dbo), dx, None, dweight, None, dkeep


apply.defvjp(_forward, _backward)


def _into(token, sizes, wi, bi, x):
  """All rows' pre-activations."""
  rows = experts._take(x.reshape(-1, x.shape[-1]), token)
  pre = list(dot(rows, tuple(w.astype(x.dtype) for w in wi), sizes))
  for i, b in enumerate(bi):
    pre[i] += _by_row(b, sizes, token.size).astype(x.dtype)
  return tuple(pre)


def _out_of(activate, token, sizes, x, wo, bo, weight, keep, pre):
  """Each token's sum over its rows."""
  if keep is not None:
    keep = _by_row(keep[:, 0], sizes, token.size)
  own = jnp.arange(token.size) < sizes.sum()
  # Before wo, so that the backward pass does not multiply by it again.
  scale = jnp.where(own, weight, 0)[:, None].astype(x.dtype)
  h = experts._hidden(activate, keep, pre) * scale
  (y,) = dot(h, (wo.astype(x.dtype),), sizes)
  if bo is not None:
    y += _by_row(bo, sizes, token.size).astype(x.dtype) * scale
  total = jnp.zeros((x.size // x.shape[-1], x.shape[-1]), x.dtype)
  return experts._add(total, token, y).reshape(x.shape)


def _by_row(x, sizes, rows):
  """Each row's expert's part of [E, ...]; past all experts, the last one's."""
  e = jnp.repeat(jnp.arange(sizes.size), sizes, total_repeat_length=rows)
  return experts._take(x, e)


@jax.custom_vjp
def dot(
  rows: Float[Array, 'R M'],
  kernels: tuple[Float[Array, 'E M F'], ...],
  sizes: Int[Array, ' E'],
) -> tuple[Float[Array, 'R F'], ...]:
  """Each row times its expert's kernels; of rows in no expert, anything."""
  return _forward_dot(rows, kernels, sizes)[0]


def _forward_dot(*arguments):
  return _by_platform(0)(*arguments), arguments


def _backward_dot(saved, g):
  drows, dkernels = _by_platform(1)(*saved, g)
  return drows, dkernels, None


def _by_platform(which):
  """The forward or backward pass of the form for where it will run."""
  forms = {platform: form[which] for platform, form in FORMS.items()}
  return functools.partial(lax.platform_dependent, **forms)


dot.defvjp(_forward_dot, _backward_dot)


def _windows(rows: int, E: int) -> tuple[int, ...]:
  """The numbers of rows that an expert can run on, each a loop to compile.

  From a quarter of the mean to all rows by factors of 1.5, of 1.2 within a
  factor of 2 of the mean: about 8% of rows are in vain.
  """
  mean = rows / E
  windows = [math.ceil(mean / 4)]
  while windows[-1] < rows:
    n = windows[-1]
    factor = 1.2 if mean / 2 <= n < 2 * mean else 1.5
    windows.append(min(math.ceil(factor * n), rows))
  return tuple(windows)


def _fold(
  step: Callable[..., Any], carry: Any, sizes: Int[Array, ' E'], rows: int
) -> Any:
  """Folds step(carry, e, begin, own) over the experts that have rows.

  Of the rows from `begin` on, those where `own` [n, 1] is true are expert e's.
  """
  windows = _windows(rows, sizes.size)
  window = jnp.searchsorted(jnp.asarray((0, *windows)), sizes)
  order = jnp.argsort(window)
  start = jnp.cumsum(sizes) - sizes

  def body(n, i, carry):
    e = order[i]
    begin = jnp.minimum(start[e], rows - n)
    row = begin + jnp.arange(n)
    own = (row >= start[e]) & (row < start[e] + sizes[e])
    return step(carry, e, begin, own[:, None])

  # Not lax.switch in one loop, which copies the carry at every step.
  for w, n in enumerate(windows, 1):
    first, last = jnp.sum(window < w), jnp.sum(window <= w)
    carry = lax.fori_loop(first, last, functools.partial(body, n), carry)
  return carry


def _slice(x, begin, own):
  return lax.dynamic_slice_in_dim(x, begin, own.size)


def _write(x, new, begin, own):
  new = jnp.where(own, new, _slice(x, begin, own))
  return lax.dynamic_update_slice_in_dim(x, new, begin, 0)


def _dot_loops(rows, kernels, sizes):
  def step(out, e, begin, own):
    x = _slice(rows, begin, own)
    return tuple(
      _write(y, x @ w[e], begin, own) for y, w in zip(out, kernels, strict=True)
    )

  R = rows.shape[0]
  out = tuple(jnp.zeros((R, w.shape[-1]), rows.dtype) for w in kernels)
  return _fold(step, out, sizes, R)


def _backward_loops(rows, kernels, sizes, g):
  def step(carry, e, begin, own):
    drows, dkernels = carry
    x = jnp.where(own, _slice(rows, begin, own), 0)
    dy = [_slice(y, begin, own) for y in g]
    dx = sum(d @ w[e].T for d, w in zip(dy, kernels, strict=True))
    dkernels = tuple(
      dw.at[e].set(x.T @ d) for dw, d in zip(dkernels, dy, strict=True)
    )
    return _write(drows, dx, begin, own), dkernels

  zeros = jax.tree.map(jnp.zeros_like, (rows, kernels))
  return _fold(step, zeros, sizes, rows.shape[0])


def _dot_ragged(rows, kernels, sizes):
  # Rows in no expert are the last one's: ragged_dot promises nothing of them.
  sizes = sizes.at[-1].add(rows.shape[0] - sizes.sum(dtype=sizes.dtype))
  return tuple(lax.ragged_dot(rows, w, sizes) for w in kernels)


def _backward_ragged(rows, kernels, sizes, g):
  _, vjp = jax.vjp(lambda *a: _dot_ragged(*a, sizes), rows, kernels)
  return vjp(g)


FORMS = {
  'cpu': (_dot_loops, _backward_loops),
  'default': (_dot_ragged, _backward_ragged),
}
