# SPDX-License-Identifier: Apache-2.0
"""Nested dicts seen as flat dicts of 'a/b/c' paths, rules on the paths, diffs.

A parameter tree is a nested dict of anything with a shape and a dtype. Renaming
is data: (regex, template) pairs; the first that matches the whole path counts.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import math
import re
from typing import Any

import numpy as np

Tree = Mapping[str, Any]
Rules = Iterable[tuple[str, str]]


def flatten(tree: Tree, prefix: str = '') -> dict[str, Any]:
  """Flattens nested dicts to {'a/b/c': leaf}, in the order of the tree."""
  flat = {}
  for name, value in tree.items():
    path = f'{prefix}{name}'
    if isinstance(value, Mapping):
      flat.update(flatten(value, f'{path}/'))
    else:
      flat[path] = value
  return flat


def unflatten(flat: Tree) -> dict[str, Any]:
  """The inverse of `flatten`.

  Raises:
    ValueError: a path is both a leaf and a branch.
  """
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    *branches, leaf = path.split('/')
    node = tree
    for name in branches:
      node = node.setdefault(name, {})
      if not isinstance(node, dict):
        raise ValueError(f'{path!r} lies below a path that is itself a leaf.')
    if leaf in node:
      raise ValueError(f'{path!r} is there twice, or is also a branch.')
    node[leaf] = value
  return tree


def rename(path: str, rules: Rules) -> str | None:
  """The path under the first matching (regex, template) rule, or None."""
  for pattern, template in rules:
    match = re.fullmatch(pattern, path)
    if match:
      return match.expand(template)
  return None


def describe(leaf: Any) -> str:
  """'float32[8, 16]' for anything with a shape and a dtype."""
  return f'{leaf.dtype}{list(leaf.shape)}'


def diff(expected: Tree, actual: Tree, *, dtypes: bool = False) -> list[str]:
  """Every difference of two trees in names, shapes and, if asked, dtypes.

  Returns:
    One line a difference, sorted by path; empty if the trees agree.
  """
  want, have = flatten(expected), flatten(actual)
  lines = []
  for path in sorted(want.keys() | have.keys()):
    if path not in have:
      lines.append(f'missing: {path} {describe(want[path])}')
    elif path not in want:
      lines.append(f'unexpected: {path} {describe(have[path])}')
    elif tuple(want[path].shape) != tuple(have[path].shape) or (
      dtypes and want[path].dtype != have[path].dtype
    ):
      lines.append(
        f'mismatch: {path} is {describe(have[path])}, '
        f'expected {describe(want[path])}'
      )
  return lines


def check(
  expected: Tree, actual: Tree, what: str, *, dtypes: bool = False
) -> None:
  """Raises one ValueError that lists all lines of `diff`, if there are any."""
  lines = diff(expected, actual, dtypes=dtypes)
  if lines:
    raise ValueError(
      f'{what}: {len(lines)} parameters do not fit:\n  ' + '\n  '.join(lines)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LazyArray:
  """An array that `np.asarray` reads at every use, and that nobody keeps."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray] = dataclasses.field(repr=False)

  @property
  def ndim(self) -> int:
    return len(self.shape)

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize

  @property
  def T(self) -> 'LazyArray':  # noqa: N802 (numpy's name)
    return LazyArray(self.shape[::-1], self.dtype, lambda: self.read().T)

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    if copy is False:
      raise ValueError('A LazyArray is read from disk: always a new array.')
    array = self.read()
    return array if dtype is None else array.astype(dtype, copy=False)


def lazily(build: Callable[[Any], Any], leaf: Any, want: Any) -> Any:
  """build(leaf): when it is used, if the leaf is lazy.

  Args:
    build: from an array to one of the shape and dtype of `want`.
    leaf: an array or a lazy one.
    want: anything with a shape and a dtype.
  """
  if not isinstance(leaf, LazyArray):
    return build(leaf)
  read = leaf.read
  return LazyArray(
    tuple(want.shape), np.dtype(want.dtype), lambda: np.asarray(build(read()))
  )
