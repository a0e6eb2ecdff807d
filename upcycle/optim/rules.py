# SPDX-License-Identifier: Apache-2.0
"""Rules on 'a/b/c' paths of pytrees.

Ordered (regex, value) pairs, of which the first that matches the whole path
counts.
"""

import re

import jax


def lookup(path, rules):
  """The value of the first rule that matches the path, or 0."""
  return next((v for r, v in rules if re.fullmatch(r, path)), 0)


def map_with_path(fn, tree, *rest):
  """Maps fn(path, *leaves) over trees of equal structure."""

  def leaf(path, *xs):
    return fn(jax.tree_util.keystr(path, simple=True, separator='/'), *xs)

  return jax.tree_util.tree_map_with_path(leaf, tree, *rest)
