# SPDX-License-Identifier: Apache-2.0
"""Configs of published models, from tables of their shapes."""

from collections.abc import Mapping
import dataclasses
from typing import Any


def make(
  config: type, presets: Mapping[str, Any], name: str, changes: Mapping
) -> Any:
  """A config of a row of a table, with changes to any of its fields.

  Raises:
    ValueError: no such row, or no such field; the known ones are listed.
  """
  if name not in presets:
    raise ValueError(f'No preset {name!r}; there are {sorted(presets)}.')
  fields = {f.name for f in dataclasses.fields(config)}
  if changes.keys() - fields:
    raise ValueError(
      f'{config.__name__} has no {sorted(changes.keys() - fields)}; '
      f'it has {sorted(fields)}.'
    )
  return config(**(presets[name] | changes))
