# SPDX-License-Identifier: Apache-2.0
"""What every checkpoint format owes: a new one is a row of READERS."""

import numpy as np
import pytest

from tests.conftest import GOLDEN
from upcycle import checkpoints, initialize, trees
from upcycle.checkpoints import FORMATS, LazyArray, huggingface, t5x, vit_npz
from upcycle.models import t5, vit

# Name: the module of the format, a real checkpoint that it wrote or reads.
READERS = {
  't5x': (t5x, GOLDEN / 't5x_tiny_dense_checkpoint' / 'checkpoint_1000'),
  'hf_t5_v1_0': (huggingface, GOLDEN / 'hf_t5_v1_0'),
  'hf_t5_v1_1': (huggingface, GOLDEN / 'hf_t5_v1_1'),
  'hf_tiny_vit': (huggingface, GOLDEN / 'hf_tiny_vit'),
  'vit_npz': (vit_npz, GOLDEN / 'vit_jax_tiny.npz'),
}
every_format = pytest.mark.parametrize('reader', READERS)


def leaves(reader: str) -> dict[str, LazyArray]:
  return trees.flatten(checkpoints.read(READERS[reader][1]).params)


def test_every_foreign_format_is_here():
  # The first rows of FORMATS are this project's own, written where tested.
  detects = {detect for detect, _ in FORMATS[2:]}
  assert detects == {module.detect for module, _ in READERS.values()}


@every_format
def test_one_format_detects_it(reader):
  module, path = READERS[reader]
  found = [detect for detect, _ in FORMATS if detect(str(path))]
  assert found == [module.detect]


@every_format
def test_parameters_are_those_of_the_model_it_describes(reader):
  checkpoint = checkpoints.read(READERS[reader][1])
  facts = checkpoint.metadata['model']
  if 'patch_size' in facts:
    model = vit.ViT(vit.ViTConfig(**facts))
  else:
    model = t5.T5(t5.T5Config(**facts))
  shapes = initialize.param_shapes(model)
  assert not trees.diff(shapes, checkpoint.params, dtypes=True)


@every_format
def test_leaves_are_read_when_used(reader):
  for path, leaf in leaves(reader).items():
    assert isinstance(leaf, LazyArray), path
    array = np.asarray(leaf)
    assert (array.shape, array.dtype) == (leaf.shape, leaf.dtype), path
    assert np.isfinite(array).all(), path
    assert array.std() > 0, path
    assert np.asarray(leaf) is not array, path


@every_format
def test_no_two_parameters_are_one_array(reader):
  """Two names for the same numbers would be a rule that matches too much."""
  arrays = {path: np.asarray(x).tobytes() for path, x in leaves(reader).items()}
  assert len(set(arrays.values())) == len(arrays)


@every_format
def test_the_path_and_the_step_are_known(reader):
  checkpoint = checkpoints.read(READERS[reader][1])
  assert str(READERS[reader][1]) == str(checkpoint.metadata['path'])
  assert checkpoint.metadata['format']
  assert checkpoint.step >= 0
