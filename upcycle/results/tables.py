# SPDX-License-Identifier: Apache-2.0
"""Tables for reading: on a screen, and in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
import math
from typing import Any

Table = list[dict[str, Any]]
UNKNOWN, NEVER = 'unknown', 'never'


def number(value: float) -> str:
  """With as many digits as one reads."""
  if math.isnan(value):
    return UNKNOWN
  if math.isinf(value):
    return NEVER
  if abs(value) >= 1e6:
    return f'{value:.3e}'
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def markdown(rows: Sequence[Mapping[str, Any]], notes: Iterable[str]) -> str:
  """A table and the notes below it."""
  names = list(rows[0])
  right = ['---' if _is_text(rows, n) else '---:' for n in names]
  lines = [names, right, *_cells(rows)]
  table = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
  return table + ''.join(f'\n{note}\n' for note in notes)


def rich_table(rows: Sequence[Mapping[str, Any]]) -> Any:
  """The same for a terminal, what it is about said once."""
  from rich import table

  made = table.Table()
  for name in rows[0]:
    text = _is_text(rows, name)
    made.add_column(name, justify='left' if text else 'right')
  said = None
  for of, *cells in _cells(rows):
    if said not in (None, of):
      made.add_section()
    made.add_row('' if of == said else of, *cells)
    said = of
  return made


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  return [[cell(value) for value in row.values()] for row in rows]


def _is_text(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
  return all(isinstance(row[name], str) for row in rows)


def cell(value: Any) -> str:
  """Of a number, words, None, or {'mean', 'low', 'high'}."""
  if isinstance(value, Mapping):
    mean, low, high = (number(value[k]) for k in ('mean', 'low', 'high'))
    return f'{mean} ({low} to {high})'
  if value is None:
    return ''
  return value if isinstance(value, str) else number(value)
