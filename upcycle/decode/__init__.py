# SPDX-License-Identifier: Apache-2.0
"""Decoding: from a model's inputs to the tokens it generates.

A strategy, `Sampling` or `Beam`, asks the model for one token after the other;
keys and values of what came before are kept in a cache, whose rows are spread
over the mesh as those of a training batch. Token 0 pads and starts, 1 ends.
"""

from upcycle.decode.base import Decoded
from upcycle.decode.beam import Beam, by_gnmt, by_length
from upcycle.decode.generate import generate, on_mesh, predict
from upcycle.decode.sampling import GREEDY, Sampling

__all__ = [
  'GREEDY',
  'Beam',
  'Decoded',
  'Sampling',
  'by_gnmt',
  'by_length',
  'generate',
  'on_mesh',
  'predict',
]
