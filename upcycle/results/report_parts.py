# SPDX-License-Identifier: Apache-2.0
"""What the report says of one modality of an experiment, as plain dicts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from upcycle.results import (
  compare,
  report_figures,
  report_values,
  tables,
  verdicts,
)

VERSIONS = 'python', 'jax', 'jaxlib', 'flax', 'optax'
NOT_RUN = 'not run'
Row = Mapping[str, Any]


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
  # One that diverged counts, unless another of its arm and seed was chosen.
  rated = [*(row for row in rows if 'error' in row), *chosen]
  by_modality = verdicts.by_modality(found['CHECKS'], rated)
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
  ended = [row for row in rows if 'error' not in row]
  lines = report_values.curves(ended)
  ends = [c[-1] for those in lines.values() for c in those]
  hours = sum(row.get('seconds', 0) for row in rows) / 3600
  said = {
    'seeds': _list(row['seed'] for row in rows),
    'extra steps': _list(f'{end[0]:,.0f}' for end in ends),
    **{
      f'{unit} of a run': _list(tables.number(n) for n in by_unit)
      for unit in ('tokens', 'images')
      if (by_unit := [row[unit] for row in rows if unit in row])
    },
    'runs': f'{len(rows)}, in {hours:.2g} hours of compute' if rows else '',
    'machine': _alike(rows, [x for x in compare.MACHINE if x != 'jax']),
    'versions': _alike(rows, VERSIONS),
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
  return found + [
    f'{r["name"]} diverged: {r["error"].split(". ")[0]}.'
    for r in rows
    if 'error' in r
  ]


def _verdict(findings: Sequence[verdicts.Finding]) -> tuple[str, str]:
  """And the first finding that it rests on, in words, and how many hold."""
  deciding = [f for f in findings if f.check.decides]
  hold = sum(f.verdict == verdicts.HOLDS for f in deciding)
  of_all = f'; {hold} of {len(deciding)} checks hold'
  verdict = verdicts.overall(findings)
  for finding in deciding or findings:
    if finding.verdict == verdict or not deciding:
      return verdict, _words(finding) + (of_all if len(deciding) > 1 else '')
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


def _alike(rows: Sequence[Row], keys: Iterable[str]) -> str:
  """What costs say of these; several answers if they are not of one."""
  said = {
    ', '.join(f'{x} {row[f"cost/{x}"]}' for x in keys if f'cost/{x}' in row)
    for row in rows
  }
  return '; '.join(sorted(said - {''}))


def _list(values: Iterable[Any]) -> str:
  return ', '.join(map(str, dict.fromkeys(values)))
