# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint is of the model that a config describes."""

import dataclasses

import numpy as np
import pytest

from tests.conftest import GOLDEN
from upcycle import checkpoints, compatibility


@dataclasses.dataclass(frozen=True)
class Config:
  width: int = 8
  activation: str = 'gelu'
  norm_epsilon: float = 1e-6


SHAPES = {'body': {'kernel': np.zeros(2)}, 'head': {'kernel': np.zeros(2)}}


def source(params=SHAPES, **model):
  metadata = {'path': 'there', 'model': model}
  return checkpoints.Checkpoint(params, 0, None, metadata)


def check(**arguments):
  compatibility.check(source(**arguments), Config(), SHAPES)


def test_the_same_function_passes():
  check()
  check(activation='gelu', norm_epsilon=1e-6)
  check(params={'body': {}})
  # Shapes and names of no field are for others to judge.
  check(width=9, logits_via_embedding=True)


def test_another_function_is_refused_with_all_that_differs():
  message = (
    r"there is .*Set in Config: activation='gelu_exact' \(is 'gelu'\), "
    r'norm_epsilon=1e-12 \(is 1e-06\)\.'
  )
  with pytest.raises(ValueError, match=message):
    check(activation='gelu_exact', norm_epsilon=1e-12, width=9)


def test_another_kind_of_model_is_refused():
  message = 'there holds another kind of model: encoder, decoder, where .*body'
  with pytest.raises(ValueError, match=message):
    check(params={'encoder': {}, 'decoder': {}})


def test_an_error_about_shapes_begins_with_the_fields():
  made = source(width=9, activation='gelu', heads=3)
  message = r'^there has width=9, the model 8\.\n1'
  with (
    pytest.raises(ValueError, match=message),
    compatibility.explained(made, Config()),
  ):
    raise ValueError('128 lines of shapes')


def test_what_no_field_explains_stays_as_it_is():
  with (
    pytest.raises(ValueError, match=r'^all that differs$'),
    compatibility.explained(source(width=8), Config()),
  ):
    raise ValueError('all that differs')
  with compatibility.explained(source(width=9), Config()):
    pass


def test_readers_tell_the_function():
  """What `check` compares is what the reader of exact GELU says."""
  model = checkpoints.read(GOLDEN / 'hf_tiny_vit').metadata['model']
  assert {name: model[name] for name in compatibility.SHAPELESS} == {
    'activation': 'gelu_exact',
    'norm_epsilon': 1e-12,
  }
