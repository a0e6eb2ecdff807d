# SPDX-License-Identifier: Apache-2.0
"""Learned position embeddings at another resolution."""

import math

from jaxtyping import Float
import numpy as np


def resize(
  embedding: Float[np.ndarray, '1 N M'], rows: int
) -> Float[np.ndarray, '1 rows M']:
  """Position embeddings of a square grid for a finer or coarser one.

  Bilinear between the grids' corners, which stay what they are; a row for the
  cls token in front of the grid is kept (Dosovitskiy et al., 2021, arXiv
  2010.11929, section 3.2, in the form of vit_jax).

  Args:
    embedding: row by row of the grid, after the cls token's if there is one.
    rows: of the result, the cls token's included.

  Raises:
    ValueError: see `grids`.
  """
  cls, old, new = grids(embedding.shape[1], rows)
  table = embedding[0].astype(np.float64)
  grid = table[cls:].reshape(old, old, -1)
  # Where the new grid's points lie between the old one's.
  at = np.linspace(0, old - 1, new)
  mix = np.stack([np.interp(at, np.arange(old), x) for x in np.eye(old)], 1)
  grid = np.einsum('ai,bj,ijm->abm', mix, mix, grid, optimize=True)
  table = np.concatenate([table[:cls], grid.reshape(new * new, -1)])
  return table.astype(embedding.dtype)[None]


def grids(old: int, new: int) -> tuple[int, int, int]:
  """(1 if there is a cls token else 0, old side, new side) of position rows.

  No two squares are one apart (but 0 and 1), so the number of rows tells
  whether there is a cls token.

  Raises:
    ValueError: a grid is not square, or only one has a cls token.
  """
  (old_cls, old_side), (new_cls, new_side) = _grid(old), _grid(new)
  if old_cls != new_cls:
    raise ValueError(
      f'Position embeddings of {old} rows are not resized to {new}: the '
      f'{"first have" if old_cls else "second have"} a cls token in front of '
      'the grid, the others none. Take the same pool_type for both.'
    )
  return old_cls, old_side, new_side


def _grid(rows: int) -> tuple[int, int]:
  for cls in (0, 1):
    side = math.isqrt(max(rows - cls, 0))
    if side and side * side == rows - cls:
      return cls, side
  raise ValueError(
    f'{rows} position embeddings are no square grid, with or without a cls '
    'token: only square grids are resized.'
  )
