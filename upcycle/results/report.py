# SPDX-License-Identifier: Apache-2.0
"""The report of all experiments: from their folders to plain dicts.

A sweep.py says what is asked and what the paper found, which runs answer it,
and its checks: `NEEDED` has the names. Three more are optional: ENTRIES, what
its runs have in common and do not say themselves; chosen(rows), those that
count; and FIGURE, how they are drawn, of `report_figures.KINDS`.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
from pathlib import Path
import runpy
from typing import Any

from upcycle.results import (
  compare,
  report_figures,
  report_values,
  sweep,
  verdicts,
)
from upcycle.results.metrics import read
from upcycle.results.tables import Table

MODALITIES = 'language', 'vision'
NEEDED = 'CLAIMS', 'TITLE', 'QUESTION', 'PAPER', 'SCALES', 'CHECKS', 'summary'
NOT_RUN, NO_CLAIM = 'not run', 'no claim'
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
    modality: part(
      _of(runs, modality),
      _of([{**common, **row} for row in rows], modality),
      _of(chosen, modality),
      found,
    )
    for modality in MODALITIES
    if _of(runs, modality)
  }
  return {
    'name': folder.name,
    'title': found['TITLE'],
    'claims': ', '.join(found['CLAIMS']),
    'question': found['QUESTION'],
    'paper': found['PAPER'],
    'scale': scale,
    'parts': parts,
    # What the table of arms, of one metric, does not say.
    'text': found['summary'](ended) if 'chosen' in found and ended else '',
    'pictures': _pictures(folder / 'figures'),
  }


def part(
  runs: Sequence[Row],
  rows: Sequence[Row],
  chosen: Sequence[Row],
  found: Mapping[str, Any],
) -> dict[str, Any]:
  """One modality of an experiment.

  Args:
    runs: that there should be.
    rows: of results.
    chosen: those of them that count.
    found: what the sweep.py defines.
  """
  by_modality = verdicts.by_modality(found['CHECKS'], chosen)
  findings = [f for those in by_modality.values() for f in those]
  verdict, why = _verdict(findings) if rows else (NOT_RUN, '')
  return {
    'verdict': verdict,
    'why': why,
    'metric': chosen[0]['metric'] if chosen else '',
    'setup': setup(rows),
    'missing': missing(runs, rows),
    'arms': report_values.table(chosen),
    'checks': [_check(finding) for finding in findings],
    'figure': report_figures.figure(chosen, found.get('FIGURE', '')),
  }


def setup(rows: Sequence[Row]) -> dict[str, str]:
  """With which seeds, for how long and on what the runs were made."""
  ends = [c[-1] for those in report_values.curves(rows).values() for c in those]
  machines = [
    [
      f'{key} {row[f"cost/{key}"]}'
      for key in compare.MACHINE
      if f'cost/{key}' in row
    ]
    for row in rows
  ]
  hours = sum(row.get('seconds', 0) for row in rows) / 3600
  said = {
    'seeds': _list(row['seed'] for row in rows),
    'extra steps': _list(f'{end[0]:,.0f}' for end in ends),
    'runs': f'{len(rows)}, in {hours:.2g} hours of compute' if rows else '',
    'machine': '; '.join(sorted({', '.join(m) for m in machines if m})),
  }
  return {name: words for name, words in said.items() if words}


def missing(runs: Sequence[Row], rows: Sequence[Row]) -> list[str]:
  """What is wanting of an experiment that was begun, in words."""
  made = {row['name']: row for row in rows}
  lacking = report_values.by_arm(r for r in runs if r['name'] not in made)
  found = [
    f'Not run yet: {arm}, seed {_list(run["seed"] for run in those)}.'
    for arm, those in lacking.items()
    if rows
  ]
  found += [
    f'{r["name"]} diverged: {r["error"]}.' for r in rows if 'error' in r
  ]
  # Rows of old have no folder.
  others = [
    run['name']
    for run in runs
    if (folder := made.get(run['name'], {}).get('model_dir'))
    and folder != sweep.model_dir(run)
  ]
  if others:
    found.append(f'Of other settings than now: {", ".join(others)}.')
  return found


def claims(found: Iterable[Mapping[str, Any]], page: str = '') -> Table:
  """A row an experiment: what is asked, what the paper says, what we do.

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
    for one in found
  ]


def _answer(one: Mapping[str, Any], modality: str) -> str:
  given = one['parts'].get(modality)
  if not given:
    return ''
  return f'**{given["verdict"]}**' + (given['why'] and f': {given["why"]}')


def _verdict(findings: Sequence[verdicts.Finding]) -> tuple[str, str]:
  """And the first finding that it rests on, in words."""
  deciding = [f for f in findings if f.check.decides]
  verdict = verdicts.overall(deciding) if deciding else NO_CLAIM
  for finding in (*deciding, *findings):
    if finding.verdict == verdict or not deciding:
      return verdict, _words(finding)
  return verdict, ''


def _words(finding: verdicts.Finding) -> str:
  return f'{verdicts.claim(finding.check)}: {verdicts.numbers(finding)}'


def _check(finding: verdicts.Finding) -> dict[str, str]:
  beside = '' if finding.check.decides else ' (no part of the claim)'
  return {
    'check': verdicts.claim(finding.check),
    'by how much': verdicts.numbers(finding),
    'verdict': finding.verdict + beside,
  }


def _latest(file: Path, runs: Sequence[Row]) -> list[dict[str, Any]]:
  """The last row of each of the runs, in their order."""
  rows = read(file) if file.exists() else []
  last = {(row['scale'], row['name']): row for row in rows}
  keys = [(run['scale'], run['name']) for run in runs]
  return [last[key] for key in keys if key in last]


def _of(rows: Iterable[Row], modality: str) -> list[Row]:
  return [row for row in rows if row['modality'] == modality]


def _list(values: Iterable[Any]) -> str:
  return ', '.join(map(str, dict.fromkeys(values)))


def _pictures(folder: Path) -> list[dict[str, str]]:
  """SVGs that other code made, with their captions of captions.json."""
  file = folder / 'captions.json'
  captions = json.loads(file.read_text()) if file.exists() else {}
  return [
    {
      'file': path.name,
      'svg': report_figures.clean(path.read_text()),
      'caption': captions.get(path.name, ''),
    }
    for path in sorted(folder.glob('*.svg'))
  ]
