# SPDX-License-Identifier: Apache-2.0
"""Paths, rules, diffs and lazy arrays."""

import numpy as np
import pytest

from upcycle import trees

TREE = {'a': {'b': np.zeros((2, 3)), 'c': {'d': np.ones(4, np.int32)}}}


def test_flatten_and_unflatten_are_inverse():
  flat = trees.flatten(TREE)
  assert list(flat) == ['a/b', 'a/c/d']
  back = trees.unflatten(flat)
  assert back['a']['c']['d'] is TREE['a']['c']['d']


@pytest.mark.parametrize('paths', [('a', 'a/b'), ('a/b', 'a')])
def test_a_path_is_a_leaf_or_a_branch(paths):
  with pytest.raises(ValueError, match=r'leaf|branch'):
    trees.unflatten(dict.fromkeys(paths, 0))


def test_the_first_rule_that_matches_the_whole_path_counts():
  rules = ((r'x/(.*)/y', r'\1'), (r'x/.*', 'other'))
  assert trees.rename('x/1/2/y', rules) == '1/2'
  assert trees.rename('x/1/yy', rules) == 'other'
  assert trees.rename('0x/1', rules) is None


def test_diff_lists_everything():
  other = {'a': {'b': np.zeros((3, 2)), 'e': np.zeros(1)}}
  assert trees.diff(TREE, TREE) == []
  assert trees.diff(TREE, other) == [
    'mismatch: a/b is float64[3, 2], expected float64[2, 3]',
    'missing: a/c/d int32[4]',
    'unexpected: a/e float64[1]',
  ]
  narrow = {'a': {**TREE['a'], 'b': np.zeros((2, 3), np.float32)}}
  assert trees.diff(TREE, narrow) == []
  assert len(trees.diff(TREE, narrow, dtypes=True)) == 1
  with pytest.raises(ValueError, match=r'Here: 3 parameters(.|\n)*a/c/d'):
    trees.check(TREE, other, 'Here')


def test_a_lazy_array_is_read_at_every_use():
  reads = []

  def read():
    reads.append(1)
    return np.arange(6.0).reshape(2, 3)

  leaf = trees.LazyArray((2, 3), np.dtype(np.float64), read)
  assert (leaf.ndim, leaf.size, leaf.nbytes) == (2, 6, 48) and not reads
  np.testing.assert_array_equal(np.asarray(leaf.T), np.asarray(leaf).T)
  assert np.asarray(leaf, np.float32).dtype == np.float32
  assert len(reads) == 3
  with pytest.raises(ValueError, match='always a new array'):
    np.asarray(leaf, copy=False)
