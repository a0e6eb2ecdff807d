# SPDX-License-Identifier: Apache-2.0
"""The report of all experiments: from their folders to plain dicts.

A sweep.py says what is asked and what the paper found, which runs answer it,
and its checks: `NEEDED` has the names. More are optional: NOTES, by scale what
to know before one believes the numbers; ENTRIES, what its runs have in common
and do not say themselves; chosen(rows), those that count; FIGURE, how they are
drawn, of `report_figures.KINDS`; table(scale), rows of what was computed from
them, and answers(scale), what that says of a claim by modality; and COMMANDS,
what makes its results, where that is not scripts/sweep.py alone.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
from pathlib import Path
import re
import runpy
from typing import Any

import numpy as np

from upcycle.results import report_parts, svg, sweep
from upcycle.results.metrics import read
from upcycle.results.tables import Table

MODALITIES = 'language', 'vision'
NEEDED = 'CLAIMS', 'TITLE', 'QUESTION', 'PAPER', 'SCALES', 'CHECKS', 'summary'
COMMAND = 'python scripts/sweep.py experiments/{name} --scale={scale}'
Row = Mapping[str, Any]


def experiments(folders: Iterable[Path], scale: str) -> list[dict[str, Any]]:
  """What there is to say about every folder that has a sweep.py.

  Args:
    folders: of experiments, in the order of the report.
    scale: of SCALES; an experiment without results of it is not run.

  Raises:
    ValueError: names every sweep.py that lacks something of `NEEDED`.
  """
  files = [f / 'sweep.py' for f in folders if (f / 'sweep.py').exists()]
  sweeps = {file.parent: runpy.run_path(str(file)) for file in files}
  faults = [
    f'{folder.name} lacks {", ".join(lacking)}'
    for folder, found in sweeps.items()
    if (lacking := [name for name in NEEDED if name not in found])
  ]
  if faults:
    raise ValueError(f'Not to be reported: {"; ".join(faults)}.')
  return [experiment(f, found, scale) for f, found in sweeps.items()]


def experiment(
  folder: Path, found: Mapping[str, Any], scale: str
) -> dict[str, Any]:
  """One experiment, from what its sweep.py defines and its results.jsonl."""
  common = {'scale': scale, **found.get('ENTRIES', {})}
  runs = [{**common, **run} for run in found['SCALES'].get(scale, [])]
  rows = _latest(folder / 'results.jsonl', runs)
  ended = [{**common, **row} for row in rows if 'error' not in row]
  chosen = found.get('chosen', list)(ended)
  parts = {
    modality: report_parts.part(
      _of(runs, modality),
      _of([{**common, **row} for row in rows], modality),
      _of(chosen, modality),
      found,
    )
    for modality in MODALITIES
    if _of(runs, modality)
  }
  table = found['table'](scale) if 'table' in found else []
  return {
    'name': folder.name,
    'title': found['TITLE'],
    'claims': ', '.join(found['CLAIMS']),
    'question': found['QUESTION'],
    'paper': found['PAPER'],
    'note': found.get('NOTES', {}).get(scale, ''),
    'scale': scale,
    'parts': parts,
    # What the table of arms, of one metric, does not say.
    'text': found['summary'](ended) if 'chosen' in found and ended else '',
    # They are of one scale: that which is run, or computed from what was.
    'pictures': _pictures(folder / 'figures') if parts or table else [],
    'table': table,
    'answers': found['answers'](scale) if 'answers' in found else {},
    'commands': [
      c.format(name=folder.name, scale=scale)
      for c in found.get('COMMANDS', (COMMAND,))
    ],
  }


def claims(found: Iterable[Mapping[str, Any]], page: str = '') -> Table:
  """A row an experiment, by claim: what is asked, the paper, what we find.

  Args:
    found: of `experiments`.
    page: that has their sections, for a table that is elsewhere.
  """
  return [
    {
      'claim': one['claims'],
      'question': f'[{one["title"]}]({page}#{one["name"]}): {one["question"]}',
      'the paper': one['paper'],
      **{modality: _answer(one, modality) for modality in MODALITIES},
    }
    for one in by_claim(found)
  ]


def by_claim(found: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """In the order of their first claims; those without come last."""

  def first(one):
    number = re.match(r'C(\d+)', one['claims'])
    return float(number[1]) if number else np.inf

  return sorted(found, key=first)


def _answer(one: Mapping[str, Any], modality: str) -> str:
  given = one['parts'].get(modality)
  if not given:
    return one['answers'].get(modality, '')
  return f'**{given["verdict"]}**' + (given['why'] and f': {given["why"]}')


def _latest(file: Path, runs: Sequence[Row]) -> list[dict[str, Any]]:
  """The last row of each of the runs that was made with its settings."""
  rows = read(file) if file.exists() else []
  names = 'scale', 'name', 'model_dir'
  last = {tuple(map(row.get, names)): row for row in rows}
  keys = [(r['scale'], r['name'], sweep.model_dir(r)) for r in runs]
  return [last[key] for key in keys if key in last]


def _of(rows: Iterable[Row], modality: str) -> list[Row]:
  return [row for row in rows if row['modality'] == modality]


def _pictures(folder: Path) -> list[dict[str, str]]:
  """SVGs that other code made, with their captions, as captions.json is."""
  file = folder / 'captions.json'
  captions = json.loads(file.read_text()) if file.exists() else {}
  return [
    {
      'file': name,
      'title': Path(name).stem,
      'svg': svg.clean((folder / name).read_text()),
      'caption': caption,
    }
    for name, caption in captions.items()
  ]
