# SPDX-License-Identifier: Apache-2.0
"""Which tokens go to which experts: what is shown of the `Seen` of batches."""

from typing import Any

import numpy as np

from upcycle.data import vocabulary

EXAMPLES, PIECES, CONTEXT, OFTEN = 4, 6, 8, 10
LETTERS, PATCHES = 24, 10


def text(
  batches: list, last: list, words: vocabulary.Vocabulary
) -> dict[str, Any]:
  """By encoder layer and expert: its pieces, and some where they stand."""
  ids = np.concatenate([b['encoder_input_tokens'] for b in batches])
  pieces = np.vectorize(lambda i: _piece(words, i), otypes=[object])(ids)
  often = ids > 0
  _, inverse, counts = np.unique(
    pieces, return_inverse=True, return_counts=True
  )
  often &= counts[inverse].reshape(ids.shape) >= OFTEN
  found = {}
  for layer in (x for x in last[0] if x.startswith('encoder/')):
    weights, probabilities = joined(last, layer)
    found[layer] = {
      'explained': explained(
        weights[often] > 0, inverse.reshape(ids.shape)[often]
      ),
      'experts': [
        {
          'pieces': _favourites(pieces[often], weights[..., e][often] > 0),
          'examples': _examples(pieces, probabilities[..., e], ids > 0),
        }
        for e in range(weights.shape[-1])
      ],
    }
  return found


def _piece(words: vocabulary.Vocabulary, i: int) -> str:
  if i >= words.pieces:
    return f'<{words.size - 1 - i}>'  # a sentinel
  return words.model.id_to_piece(int(i)).replace('▁', ' ')


def explained(taken: np.ndarray, kind: np.ndarray) -> float:
  """Share of the variance of who takes a token that its kind explains.

  Adjusted, so that kinds which mean nothing explain nothing (Ezekiel, 1930).

  Args:
    taken: whether an expert has taken a token, [N, E].
    kind: of each token, from 0, [N].
  """
  counts = np.maximum(np.bincount(kind), 1)
  shares = np.stack([np.bincount(kind, x) / counts for x in taken.T], -1)
  within = np.sum(np.square(taken - shares[kind]))
  free = len(kind) - np.count_nonzero(np.bincount(kind))
  return round(float(1 - within / free / taken.var(0, ddof=1).sum()), 3)


def _favourites(
  pieces: np.ndarray, taken: np.ndarray
) -> list[tuple[str, float, int]]:
  """Pieces of which an expert takes the largest share, and how many there are.

  Of equal shares the more frequent piece.
  """
  names, inverse, counts = np.unique(
    pieces, return_inverse=True, return_counts=True
  )
  shares = np.bincount(inverse, taken) / counts
  order = np.lexsort((-counts, -shares.round(2)))[:PIECES]
  return [
    (str(names[i]), round(float(shares[i]), 3), int(counts[i])) for i in order
  ]


def _examples(
  pieces: np.ndarray, probability: np.ndarray, real: np.ndarray
) -> list[dict[str, Any]]:
  """Where the router is surest of an expert, each time of another piece."""
  found: dict[str, dict[str, Any]] = {}
  order = np.argsort(-np.where(real, probability, -1), axis=None)
  for flat in order:
    row, i = np.unravel_index(flat, pieces.shape)
    if len(found) == EXAMPLES:
      break
    found.setdefault(
      pieces[row, i],
      {
        'left': ''.join(pieces[row, max(i - CONTEXT, 0) : i]),
        'piece': pieces[row, i],
        'right': ''.join(pieces[row, i + 1 : i + 1 + CONTEXT]),
        'probability': round(float(probability[row, i]), 3),
      },
    )
  return list(found.values())


def images(batches: list, last: list, size: int) -> dict[str, Any]:
  """Images with each patch's first expert; by expert what it takes, and where.

  Args:
    batches: of images in [-1, 1].
    last: what the MoE layers have seen of them.
    size: of a patch.
  """
  pixels = np.concatenate([b['images'] for b in batches]).mean(-1)
  labels = np.concatenate([b['labels'][:, 0] for b in batches])
  _, first = np.unique(labels, return_index=True)
  chosen = first[np.linspace(0, len(first) - 1, LETTERS).astype(int)]
  grid = [n // size for n in pixels.shape[1:]]
  layers = {}
  for layer in last[0]:
    # The last tokens are patches; a class token comes before them.
    weights, probabilities = (
      x[:, -grid[0] * grid[1] :] for x in joined(last, layer)
    )
    N, L, E = weights.shape
    best = np.where(weights.any(-1), weights.argmax(-1), -1)
    layers[layer] = {
      'first': best[chosen].tolist(),
      'where': plain((weights > 0).mean(0).T),
      'explained': explained(
        (weights > 0).reshape(-1, E), np.tile(np.arange(L), N)
      ),
      'surest': [_surest(pixels, x) for x in np.moveaxis(probabilities, -1, 0)],
    }
  return {
    'grid': grid,
    'images': [_hex(x) for x in pixels[chosen]],
    'layers': layers,
  }


def _surest(pixels: np.ndarray, probability: np.ndarray) -> list[dict]:
  """The images with the patches of which the router is surest, one in each."""
  order = np.argsort(-probability.max(-1))[:PATCHES]
  place = probability.argmax(-1)
  return [{'image': _hex(pixels[i]), 'place': int(place[i])} for i in order]


def _hex(pixels: np.ndarray) -> list[str]:
  """A string a row, a digit from 0 to f a pixel."""
  digits = np.uint8((pixels + 1) * 7.5 + 0.5)
  return [''.join(f'{x:x}' for x in row) for row in digits]


def joined(last: list, layer: str) -> tuple[np.ndarray, np.ndarray]:
  """Combine weights and probabilities [B, L, E] of a layer, all batches."""
  seen = zip(*(s[layer] for s in last), strict=True)
  weights, probabilities = map(np.concatenate, seen)
  return weights, probabilities


def plain(value: Any) -> Any:
  """Four digits, None for NaN, as JSON has them."""
  if isinstance(value, dict):
    return {name: plain(x) for name, x in value.items()}
  if np.ndim(value):
    return [plain(x) for x in value]
  return None if np.isnan(value) else round(float(value), 4)
