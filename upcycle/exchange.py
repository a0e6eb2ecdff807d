# SPDX-License-Identifier: Apache-2.0
"""How tokens and experts meet on a mesh.

Where several devices share the tokens, `apply` does by `shard_map` what
`experts.apply` does on one: a device dispatches its own groups, an exchange
brings slots and experts together, and the device combines what comes back. An
exchange is a function of what one device holds, exchange(run, mlp, slots, keep)
of
  run    (mlp, rows [E, N, M], keep [E, N or 1, F] or None) -> [E, N, M]
  mlp    parameters of its own experts, e of E
  slots  [G, E, C, M], tokens of its own groups, for all experts
  keep   dropout of its own experts' hidden layers, [e, N or 1, F], or None
and returns [G, E, C, M]. All of them give the same numbers.
"""

from collections.abc import Callable
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int
import numpy as np

from upcycle import dispatch, experts, partition

AXIS = 'expert'
Travel = Callable[[Array], Array]


def apply(
  exchange: Callable[..., Array],
  activate: experts.Activate,
  mlp: experts.Mlp,
  x: Float[Array, 'G S M'],
  token: Int[Array, 'G E C'],
  weight: Float[Array, 'G E C'],
  keep: Float[Array, 'E _ F'] | None = None,
) -> Float[Array, 'G S M']:
  """`experts.apply` on the current mesh, groups and experts spread over it.

  Raises:
    ValueError: the devices do not divide the groups, or the experts.
  """
  if partition.size(*partition.TOKENS) == 1:
    return experts.apply(activate, mlp, x, token, weight, keep)
  _check(*token.shape[:2])

  def local(mlp, x, token, weight, keep):
    run = functools.partial(on_rows, activate)
    y = exchange(run, mlp, dispatch.dispatch(x, token), keep)
    return dispatch.combine(y, token, weight, x.shape[1])

  tokens, mine = P(partition.TOKENS), P(AXIS)
  rows = P(AXIS, 'data') if keep is not None and keep.shape[1] > 1 else mine
  on_mesh = partition.local(local, (mine, tokens, tokens, tokens, rows))
  return on_mesh(mlp, x, token, weight, keep)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def on_rows(
  activate: experts.Activate,
  mlp: experts.Mlp,
  rows: Float[Array, 'E N M'],
  keep: Float[Array, 'E _ F'] | None = None,
) -> Float[Array, 'E N M']:
  """What `experts.apply` does between dispatch and combine, all at once."""
  return _rows_forward(activate, mlp, rows, keep)[0]


def _rows_forward(activate, mlp, rows, keep):
  expert = functools.partial(experts._expert, activate, experts._at_once)
  y, pre = jax.vmap(expert)(mlp, keep, rows)
  return y, (mlp, rows, keep, pre)


def _rows_backward(activate, saved, g):
  mlp, rows, keep, pre = saved
  backward = functools.partial(
    experts._expert_backward, activate, experts._at_once
  )
  weight = jnp.ones(rows.shape[:2], rows.dtype)
  dmlp, drows, _, dkeep = jax.vmap(backward)(mlp, keep, rows, pre, weight, g)
  return dmlp, drows, dkeep


on_rows.defvjp(_rows_forward, _rows_backward)


def _check(G: int, E: int) -> None:
  shards, n = partition.size(*partition.TOKENS), partition.size(AXIS)
  if G % shards or E % n:
    raise ValueError(
      f'{shards} devices cannot share {G} groups of tokens, or {n} of them '
      f'{E} experts: take multiples.'
    )


def all_to_all(x: Float[Array, 'n ...']) -> Float[Array, 'n ...']:
  """Piece i goes to device i of the axis; piece i came from device i."""
  return lax.all_to_all(x, AXIS, 0, 0, tiled=True)


def two_step(x: Float[Array, 'n ...'], nodes: int) -> Float[Array, 'n ...']:
  """The same in two steps: within nodes, then between devices of equal rank.

  A device sends `nodes - 1` large messages out of its node in place of
  `n - n / nodes` small ones (Tutel, Hwang et al. 2022, section 3.4, "2DH").

  Args:
    x: pieces by device.
    nodes: that the axis spans, consecutive devices in each.

  Raises:
    ValueError: they do not divide the axis.
  """
  n = x.shape[0]
  if n % nodes:
    raise ValueError(f'{nodes} nodes do not divide an expert axis of {n}.')
  ranks = n // nodes
  inside = [[a * ranks + i for i in range(ranks)] for a in range(nodes)]
  across = [[a * ranks + i for a in range(nodes)] for i in range(ranks)]
  x = x.reshape(nodes, ranks, *x.shape[1:])
  for axis, groups in ((1, inside), (0, across)):
    x = lax.all_to_all(
      x, AXIS, axis, axis, axis_index_groups=groups, tiled=True
    )
  return x.reshape(n, *x.shape[2:])


def flat(
  run: Callable[..., Array],
  mlp: experts.Mlp,
  slots: Float[Array, 'G E C M'],
  keep: Float[Array, 'e _ F'] | None,
  *,
  travel: Travel = all_to_all,
) -> Float[Array, 'G E C M']:
  """Slots travel to their experts and back: one all-to-all each way."""
  n, (G, E, C, M) = partition.size(AXIS), slots.shape
  x = slots.reshape(G, n, E // n, C, M).transpose(1, 2, 0, 3, 4)
  x = travel(x)  # [n, e, G, C, M]: from device i, its groups
  rows = x.swapaxes(0, 1).reshape(E // n, n * G * C, M)
  y = run(mlp, rows, keep).reshape(E // n, n, G, C, M).swapaxes(0, 1)
  return travel(y).transpose(2, 0, 1, 3, 4).reshape(slots.shape)


def hierarchical(
  run: Callable[..., Array],
  mlp: experts.Mlp,
  slots: Float[Array, 'G E C M'],
  keep: Float[Array, 'e _ F'] | None,
  *,
  nodes: int,
) -> Float[Array, 'G E C M']:
  """`flat` by `two_step`, where the expert axis crosses nodes."""
  travel = functools.partial(two_step, nodes=nodes)
  return flat(run, mlp, slots, keep, travel=travel)


def pipelined(
  run: Callable[..., Array],
  mlp: experts.Mlp,
  slots: Float[Array, 'G E C M'],
  keep: Float[Array, 'e _ F'] | None,
  *,
  chunks: int = 2,
  exchange: Callable[..., Array] = flat,
) -> Float[Array, 'G E C M']:
  """In parts of the slots, so that one travels while another is computed.

  Tutel (Hwang et al. 2022, section 3.3), which cuts the capacity axis as well.

  Args:
    chunks: parts; the last ones are shorter if they do not divide the slots.
    exchange: of every part.
  """
  G, _, C, _ = slots.shape
  groups, outputs = G * partition.size(AXIS), []
  for part in np.array_split(np.arange(C), min(chunks, C)):
    mine = slice(part[0], part[-1] + 1)
    kept = keep
    if keep is not None and keep.shape[1] > 1:
      kept = keep.reshape(len(keep), groups, C, -1)[:, :, mine]
      kept = kept.reshape(len(keep), -1, keep.shape[-1])
    outputs.append(exchange(run, mlp, slots[:, :, mine], kept))
  return jnp.concatenate(outputs, axis=2)


def gather_weights(
  run: Callable[..., Array],
  mlp: experts.Mlp,
  slots: Float[Array, 'G E C M'],
  keep: Float[Array, 'e _ F'] | None,
) -> Float[Array, 'G E C M']:
  """Weights travel, tokens stay: for fewer tokens than weights."""
  n, (G, E, C, M) = partition.size(AXIS), slots.shape
  gather = functools.partial(lax.all_gather, axis_name=AXIS, tiled=True)
  if keep is not None and keep.shape[1] > 1:
    # Drawn for the rows that an expert would get: back to those it gets now.
    keep = keep.reshape(E // n, n, G * C, -1).swapaxes(0, 1)
    keep = all_to_all(keep).reshape(E, G * C, -1)
  elif keep is not None:
    keep = gather(keep)
  rows = slots.swapaxes(0, 1).reshape(E, G * C, M)
  y = run(jax.tree.map(gather, mlp), rows, keep)
  return y.reshape(E, G, C, M).swapaxes(0, 1)


def adaptive(
  run: Callable[..., Array],
  mlp: experts.Mlp,
  slots: Float[Array, 'G E C M'],
  keep: Float[Array, 'e _ F'] | None,
) -> Float[Array, 'G E C M']:
  """`gather_weights` or `flat`, whichever moves fewer bytes.

  By the shapes at hand, so each compiled program has its own answer: Tutel's
  adaptive parallelism (Hwang et al. 2022, section 3.2) without a switch.
  """
  nbytes = lambda x: x.size * x.dtype.itemsize  # noqa: E731
  weights = sum(map(nbytes, jax.tree.leaves(mlp))) * partition.size(AXIS)
  exchange = gather_weights if weights < 2 * nbytes(slots) else flat
  return exchange(run, mlp, slots, keep)
