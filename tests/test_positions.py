# SPDX-License-Identifier: Apache-2.0
"""Position embeddings at other resolutions, as vit_jax resizes them."""

import numpy as np
import pytest

from tests.conftest import golden
from upcycle import positions

GOLDEN, _ = golden('positions')
SOURCE = GOLDEN['source17']


@pytest.mark.parametrize('side', [3, 6, 8])
@pytest.mark.parametrize('kind, cls', [('tok', 1), ('grid', 0)])
def test_resized_as_vit_jax_does(kind, cls, side):
  source = SOURCE if cls else SOURCE[:, 1:]
  found = positions.resize(source, cls + side**2)
  np.testing.assert_allclose(
    found,
    GOLDEN[f'{kind}_4to{side}'],
    rtol=1e-6,
    atol=1e-6,
    err_msg=(
      'A checkpoint would be finetuned at another resolution with other '
      'positions than in vit_jax: mend upcycle/positions.py.'
    ),
  )


def test_equal_grids_and_corners_stay():
  np.testing.assert_array_equal(positions.resize(SOURCE, 17), SOURCE)
  corners = [0, 3, 12, 15]
  other = positions.resize(SOURCE[:, 1:], 49)
  np.testing.assert_array_equal(
    other[:, [0, 6, 42, 48]], SOURCE[:, 1:][:, corners]
  )


def test_rows_and_columns_are_told_apart():
  rows = np.repeat(np.arange(3.0, dtype=np.float32), 3).reshape(1, 9, 1)
  found = positions.resize(rows, 25).reshape(5, 5)
  np.testing.assert_allclose(found, np.repeat([[0, 0.5, 1, 1.5, 2]], 5, 0).T)


def test_a_single_patch():
  """As scipy's zoom: the one point lies in the first corner."""
  found = positions.resize(SOURCE, 2)
  np.testing.assert_array_equal(found, SOURCE[:, :2])
  back = positions.resize(found, 5)
  np.testing.assert_array_equal(back[:, 1:], np.repeat(found[:, 1:], 4, 1))


@pytest.mark.parametrize(
  'old, new, message',
  [
    (17, 20, r'^20 position embeddings are no square grid'),
    (15, 16, r'^15 position'),
    (17, 16, r'first have a cls token'),
    (16, 37, r'second have a cls token'),
    (0, 16, r'^0 position'),
  ],
)
def test_refuses(old, new, message):
  with pytest.raises(ValueError, match=message):
    positions.grids(old, new)
  with pytest.raises(ValueError, match=message):
    positions.resize(np.zeros((1, old, 2), np.float32), new)
