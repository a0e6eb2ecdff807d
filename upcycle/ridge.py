# SPDX-License-Identifier: Apache-2.0
"""Ridge regression from frozen features to classes, as in vmoe.

After A. Kolesnikov, L. Beyer and X. Zhai. Fitted in float64; vmoe's in float32.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np

# So large that the regularisation hardly reaches the bias.
BIAS = 100.0

# Of a set and draw, by images a class and L2.
Accuracies = Mapping[tuple[int, float], float]


class Ridge(NamedTuple):
  """A regression decomposed: weights at any L2 cost one product."""

  mean: Float[np.ndarray, ' D']
  std: Float[np.ndarray, ' D']
  left: Float[np.ndarray, '_ R']
  eigenvalues: Float[np.ndarray, ' R']
  right: Float[np.ndarray, 'R classes']


def ridge(
  features: Float[np.ndarray, 'N D'],
  labels: Int[np.ndarray, ' N'],
  num_classes: int,
) -> Ridge:
  """Least squares from whitened features to labels in {-1, 1}.

  With X the whitened features and a constant, w = (X'X + L2)^-1 X'y, or where
  there are fewer images than features, X' (XX' + L2)^-1 y: either way the
  smaller matrix is decomposed, once for all L2.
  """
  features = features.astype(np.float64)
  mean, std = features.mean(0), features.std(0) + 1e-5
  x = (features - mean) / std
  x = np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)
  y = 2.0 * np.eye(num_classes)[labels] - 1.0
  if x.shape[0] >= x.shape[1]:
    eigenvalues, q = np.linalg.eigh(x.T @ x)
    return Ridge(mean, std, q, eigenvalues, q.T @ (x.T @ y))
  eigenvalues, q = np.linalg.eigh(x @ x.T)
  return Ridge(mean, std, x.T @ q, eigenvalues, q.T @ y)


def weights(fit: Ridge, l2: float) -> Float[np.ndarray, '_ classes']:
  """The regression's weights, the bias's last."""
  return (fit.left / (fit.eigenvalues + l2)) @ fit.right


def accuracy(
  fit: Ridge,
  l2: float,
  features: Float[np.ndarray, 'N D'],
  labels: Int[np.ndarray, ' N'],
) -> float:
  """The share of images whose largest output is that of their class."""
  w = weights(fit, l2)
  # Scaled are the weights, and nothing of the test set's size is float64.
  kernel, bias = w[:-1] / fit.std[:, None], BIAS * w[-1]
  mean, kernel, bias = (
    x.astype(features.dtype) for x in (fit.mean, kernel, bias)
  )
  outputs = (features - mean) @ kernel + bias
  return float(np.mean(outputs.argmax(1) == labels))


def best_l2(
  results: Sequence[Accuracies], shot: int, l2: Sequence[float]
) -> float:
  """One L2 for all sets: of the best mean rank, so that no set is fitted.

  Args:
    results: of each set and draw, accuracies by (shot, L2).
    shot: number of images a class.
    l2: what to choose from.
  """
  rows = np.array([[result[shot, x] for x in l2] for result in results])
  order = np.argsort(rows, axis=1, kind='stable')
  ranks = np.argsort(order, axis=1, kind='stable')
  return l2[int(ranks.mean(0).argmax())]


def draw(
  labels: Int[np.ndarray, ' N'], shot: int, seed: int
) -> Int[np.ndarray, ' n']:
  """Indices of `shot` images of each class, or all where there are fewer.

  A larger draw of the same seed holds the smaller ones.
  """
  rng = np.random.default_rng(seed)
  members = (np.flatnonzero(labels == c) for c in np.unique(labels))
  return np.concatenate([rng.permutation(m)[:shot] for m in members])
