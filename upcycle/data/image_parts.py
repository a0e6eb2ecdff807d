# SPDX-License-Identifier: Apache-2.0
"""A part of a source, such as images for validation out of those to train on.

TFDS has slices of its own; the arrays and folders of this project are sorted by
class, so that a slice of them would lack classes.
"""

import numpy as np

from upcycle.data.image_sources import Source


def part(source: Source, first: float = 0.0, last: float = 1.0) -> Source:
  """The images between two shares of a source in a fixed random order.

  part(source, 0, 0.9) and part(source, 0.9, 1) have no image in common.

  Args:
    source: any.
    first: share of the images before the part.
    last: share of the images up to its end.

  Raises:
    ValueError: no shares 0 <= first < last <= 1.
  """
  if not 0 <= first < last <= 1:
    raise ValueError(
      f'No part {first} to {last} of {source.name}: 0 <= first < last <= 1.'
    )
  order = np.random.default_rng(0).permutation(len(source))
  start, end = (round(share * len(source)) for share in (first, last))
  indices = np.sort(order[start:end])

  def labels() -> list:
    found = source.labels()
    return [found[i] for i in indices]

  return Source(
    f'{source.name}, part {first} to {last}',
    source.num_classes,
    len(indices),
    lambda i: source[int(indices[i])],
    None if source.labels is None else labels,
    f'{source.digest} {first} {last}',
  )
