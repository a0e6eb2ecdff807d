# SPDX-License-Identifier: Apache-2.0
"""The experts' MLPs: from tokens to the sum of what their experts return.

One function with a backward pass of its own, in two forms. All experts at once,
on gathered slots, is the form of accelerators, and of small experts on CPUs.
Others run there one after the other, so that slots are never kept and the
sum is made in place; XLA's own backward pass of that loop is up to 16% slower.
docs/performance.md has the measurements.
"""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from upcycle import dispatch

Activate = Callable[..., Array]

# A CPU runs experts one by one if a kernel has as many numbers (4 MB, what a
# core's own cache holds) or an expert as many rows: otherwise the loop costs
# more than it saves.
LARGE_KERNEL, MANY_ROWS = 2**20, 512


class Mlp(NamedTuple):
  """Parameters of an MLP, of E of them with a leading axis.

  Attributes:
    wi: kernels [M, F] into the hidden layer: one, or two if gated.
    bi: their biases [F], or ().
    wo: the kernel [F, M] out of it.
    bo: its bias [M], or None.
  """

  wi: tuple[Array, ...]
  bi: tuple[Array, ...]
  wo: Array
  bo: Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def apply(
  activate: Activate,
  mlp: Mlp,
  x: Float[Array, 'G S M'],
  token: Int[Array, 'G E C'],
  weight: Float[Array, 'G E C'],
  keep: Float[Array, 'E _ F'] | None = None,
) -> Float[Array, 'G S M']:
  """Each token's sum over its slots of weight times its expert's output.

  Args:
    activate: from the pre-activations of each of wi to the hidden layer,
      element by element.
    mlp: all experts' parameters.
    x: tokens; what is computed is in their dtype.
    token: which fills a slot; S marks an empty one.
    weight: of a slot's output in the sum, 0 if empty.
    keep: factors of the hidden layer, of all slots or of each: dropout.
  """
  arguments = mlp, x, token, weight, keep
  if token.shape[2] < x.shape[1] or keep is not None:
    return _forward(activate, *arguments)[0]
  # Room for all tokens, as in decoding: most slots are empty.
  return lax.platform_dependent(
    *arguments,
    cpu=functools.partial(_filled, activate),
    default=lambda *a: FORMS['at once'][0](activate, *a)[0],
  )


def _forward(activate, *arguments):
  out, pre = _by_platform(0, activate)(*arguments)
  return out, (*arguments, pre)


def _backward(activate, saved, g):
  dmlp, dx, dweight, dkeep = _by_platform(1, activate)(*saved, g)
  return dmlp, dx, None, dweight, dkeep


def _by_platform(which, activate):
  """The forward or backward pass of the form for where it will run."""

  def on_cpu(mlp, x, token, *arguments):
    G, _, C = token.shape
    form = FORMS[cpu_form(math.prod(mlp.wo.shape[1:]), G * C)]
    return form[which](activate, mlp, x, token, *arguments)

  at_once = functools.partial(FORMS['at once'][which], activate)
  return functools.partial(lax.platform_dependent, cpu=on_cpu, default=at_once)


apply.defvjp(_forward, _backward)


def cpu_form(kernel: int, rows: int) -> str:
  """Which of FORMS is fastest for an expert's numbers in a kernel, and rows."""
  one_by_one = kernel >= LARGE_KERNEL or rows >= MANY_ROWS
  return 'one by one' if one_by_one else 'in turn'


def _at_once(*calls):
  """Results of calls (function, *arguments)."""
  return [function(*arguments) for function, *arguments in calls]


def _in_turn(*calls):
  """The same, one after the other.

  XLA runs what does not depend on each other side by side, but a matmul has
  threads of its own: on a CPU two at a time take up to three times as long.
  """
  results = []
  for function, *arguments in calls:
    if results:
      results, arguments = lax.optimization_barrier((results, arguments))
    results.append(function(*arguments))
  return results


def _hidden(activate, keep, pre):
  h = activate(*pre)
  return h if keep is None else h * keep.astype(h.dtype)


def _expert(activate, run, mlp, keep, rows):
  """One expert: its output for rows [N, M], and its pre-activations."""
  pre = run(*((_matmul, rows, w) for w in mlp.wi))
  if mlp.bi:
    pre = [p + b.astype(p.dtype) for p, b in zip(pre, mlp.bi, strict=True)]
  y = _matmul(_hidden(activate, keep, pre), mlp.wo)
  return (y if mlp.bo is None else y + mlp.bo.astype(y.dtype)), tuple(pre)


def _expert_backward(activate, run, mlp, keep, rows, pre, weight, g):
  """(d mlp, d rows, d weight, d keep) for the gradient g of the rows' sums."""
  h, vjp = jax.vjp(functools.partial(_hidden, activate), keep, tuple(pre))
  dh = _matmul_back(g, mlp.wo)
  # What the weight scales is h @ wo + bo, of which g takes the inner product.
  dweight = jnp.sum((h * dh).astype(weight.dtype), -1)
  if mlp.bo is not None:
    dweight += _matmul(g, mlp.bo).astype(weight.dtype)
  scale = weight[:, None].astype(rows.dtype)
  g = g * scale
  dkeep, dpre = vjp(dh * scale)
  pairs = list(zip(dpre, mlp.wi, strict=True))
  *results, dwo = run(
    *((_matmul_back, d, w) for d, w in pairs),
    *((_kernel_gradient, rows, d, w) for d, w in pairs),
    (_kernel_gradient, h, g, mlp.wo),
  )
  dbias = dpre if mlp.bi else ()
  dmlp = Mlp(
    tuple(results[len(pairs) :]),
    tuple(d.sum(0).astype(b.dtype) for d, b in zip(dbias, mlp.bi, strict=True)),
    dwo,
    None if mlp.bo is None else g.sum(0).astype(mlp.bo.dtype),
  )
  return dmlp, sum(results[: len(pairs)]), dweight, dkeep


def _matmul(rows, kernel):
  return rows @ kernel.astype(rows.dtype)


def _matmul_back(g, kernel):
  return g @ kernel.astype(g.dtype).T


def _kernel_gradient(rows, g, kernel):
  return (rows.T @ g).astype(kernel.dtype)


def _flat(token, weight, S):
  """[E, G*C] rows of all groups' tokens; empty slots take row 0 by weight 0."""
  row = token + S * jnp.arange(token.shape[0])[:, None, None]
  row = jnp.where(token < S, row, 0)
  return _by_expert(row), _by_expert(jnp.where(token < S, weight, 0))


def _take(x, row):
  return x.at[row].get(mode='promise_in_bounds')


def _add(total, row, values):
  return total.at[row].add(values, mode='promise_in_bounds')


def _forward_scan(activate, mlp, x, token, weight, keep):
  G, S, M = x.shape
  flat = x.reshape(G * S, M)

  def step(total, inputs):
    mlp, row, weight, keep = inputs
    y, pre = _expert(activate, _at_once, mlp, keep, _take(flat, row))
    return _add(total, row, y * weight[:, None].astype(y.dtype)), pre

  rows = _flat(token, weight, S)
  total, pre = lax.scan(step, jnp.zeros_like(flat), (mlp, *rows, keep))
  return total.reshape(x.shape), pre


def _backward_scan(activate, mlp, x, token, weight, keep, pre, g):
  G, S, M = x.shape
  flat, g = x.reshape(G * S, M), g.reshape(G * S, M)

  def step(dx, inputs):
    mlp, row, weight, keep, pre = inputs
    dmlp, drows, dweight, dkeep = _expert_backward(
      activate,
      _at_once,
      mlp,
      keep,
      _take(flat, row),
      pre,
      weight,
      _take(g, row),
    )
    # An empty slot has weight 0, and so gives no gradient but to that weight.
    return _add(dx, row, drows), (dmlp, dweight, dkeep)

  rows = _flat(token, weight, S)
  dx, (dmlp, dweight, dkeep) = lax.scan(
    step, jnp.zeros_like(flat), (mlp, *rows, keep, pre)
  )
  E, C = token.shape[1:]
  dweight = dweight.reshape(E, G, C).swapaxes(0, 1)
  dweight = jnp.where(token < S, dweight, 0).astype(weight.dtype)
  return dmlp, dx.reshape(x.shape), dweight, dkeep


def _filled(activate, mlp, x, token, weight, keep):
  """An expert without tokens is not read, others run on few rows in vain."""
  G, S, M = x.shape
  flat, N, filled = x.reshape(G * S, M), G * S, _by_expert(token < S)
  front = jnp.argsort(~filled, axis=1)
  slots = (jnp.take_along_axis(a, front, 1) for a in _flat(token, weight, S))
  each = (mlp, *slots)
  # The numbers of rows that an expert can run on, each a loop to compile.
  sizes = sorted({math.ceil(N / 2**i) for i in range(5)})
  size = jnp.searchsorted(jnp.asarray(sizes), filled.sum(1))
  size = jnp.where(filled.any(1), size, -1)
  order = jnp.argsort(size)

  def body(n, i, total):
    mlp, row, weight = jax.tree.map(lambda a: a[order[i]], each)
    y, _ = _expert(activate, _at_once, mlp, keep, _take(flat, row[:n]))
    return _add(total, row[:n], y * weight[:n, None].astype(y.dtype))

  total = jnp.zeros_like(flat)
  for i, n in enumerate(sizes):
    first, last = jnp.sum(size < i), jnp.sum(size <= i)
    total = lax.fori_loop(first, last, functools.partial(body, n), total)
  return total.reshape(x.shape)


def _by_expert(slots):
  """[G, E, C, ...] to [E, G*C, ...]."""
  G, E, C, *rest = slots.shape
  return slots.swapaxes(0, 1).reshape(E, G * C, *rest)


def _by_group(rows, token):
  G, E, C = token.shape
  return rows.reshape(E, G, C, *rows.shape[2:]).swapaxes(0, 1)


def _forward_batched(run, activate, mlp, x, token, weight, keep):
  rows = _by_expert(dispatch.dispatch(x, token))
  expert = functools.partial(_expert, activate, run)
  y, pre = jax.vmap(expert)(mlp, keep, rows)
  return dispatch.combine(_by_group(y, token), token, weight, x.shape[1]), pre


def _backward_batched(run, activate, mlp, x, token, weight, keep, pre, g):
  rows, g = (_by_expert(dispatch.dispatch(a, token)) for a in (x, g))
  backward = functools.partial(_expert_backward, activate, run)
  dmlp, drows, dweight, dkeep = jax.vmap(backward)(
    mlp, keep, rows, pre, _by_expert(weight), g
  )
  ones = jnp.ones_like(weight)
  dx = dispatch.combine(_by_group(drows, token), token, ones, x.shape[1])
  dweight = _by_group(dweight, token).astype(weight.dtype)
  return dmlp, dx, dweight, dkeep


_batched = _forward_batched, _backward_batched
FORMS = {
  'one by one': (_forward_scan, _backward_scan),
  'in turn': tuple(functools.partial(f, _in_turn) for f in _batched),
  'at once': tuple(functools.partial(f, _at_once) for f in _batched),
}
