# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint is of the model that a config describes.

Surgery compares names and shapes. What those do not tell, or tell only at
length, is compared here with what the checkpoint's reader found out.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
from typing import Any

from upcycle import checkpoints

# Fields of configs that change a model's function but none of its shapes.
SHAPELESS = 'activation', 'norm_epsilon'
_NOT_ARCHITECTURE = 'dropout_rate', 'dtype', 'head_bias', 'remat'


def facts(config: Any) -> dict[str, Any]:
  """What a checkpoint of the model records beside its arrays."""
  fields = {f.name for f in dataclasses.fields(config)}
  return {name: getattr(config, name) for name in SHAPELESS if name in fields}


def architecture(config: Any) -> dict[str, Any]:
  """The arguments of a model's config, but for experts and how it is run."""
  return {
    f.name: getattr(config, f.name)
    for f in dataclasses.fields(config)
    if 'moe' not in f.name and f.name not in _NOT_ARCHITECTURE
  }


def check(source: checkpoints.Checkpoint, config: Any, shapes: Any) -> None:
  """Refuses another kind of model, and functions that shapes do not tell.

  Args:
    source: as read; `metadata['model']` are arguments of its own config.
    config: a frozen dataclass, the model's.
    shapes: of the model's parameters.

  Raises:
    ValueError: names every field that differs, and its values.
  """
  path, name = source.metadata['path'], type(config).__name__
  if source.params.keys().isdisjoint(shapes):
    raise ValueError(
      f'{path} holds another kind of model: {", ".join(source.params)}, where '
      f'that of {name} has {", ".join(shapes)}.'
    )
  different = [d for d in _differences(source, config) if d[0] in SHAPELESS]
  if different:
    raise ValueError(
      f'{path} is of another function than the model. Set in {name}: '
      + ', '.join(f'{f}={had!r} (is {has!r})' for f, had, has in different)
      + '.'
    )


@contextlib.contextmanager
def explained(source: checkpoints.Checkpoint, config: Any) -> Iterator[None]:
  """Puts the fields that differ before an error about shapes."""
  try:
    yield
  except ValueError as error:
    different = [
      f'{field}={had!r}, the model {has!r}'
      for field, had, has in _differences(source, config)
    ]
    if not different:
      raise
    raise ValueError(
      f'{source.metadata["path"]} has {"; ".join(different)}.\n{error}'
    ) from None


def _differences(
  source: checkpoints.Checkpoint, config: Any
) -> list[tuple[str, Any, Any]]:
  """(field, the checkpoint's value, the config's) where they differ."""
  given = source.metadata.get('model', {})
  fields = {f.name for f in dataclasses.fields(config)}
  return [
    (field, value, getattr(config, field))
    for field, value in given.items()
    if field in fields and value != getattr(config, field)
  ]
