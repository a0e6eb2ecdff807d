# SPDX-License-Identifier: Apache-2.0
"""Pages of the report: HTML that stands alone, and its twin in Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
import re
from typing import Any

from upcycle.results import report, svg, tables, verdicts
from upcycle.results.metrics import write_text

FIGURES = 'figures'
BARS = (
  'Bars and bands are bootstrap intervals: of three seeds, from the least to '
  'the greatest.'
)
MARKED = re.compile(r'(<!-- results -->\n).*?(<!-- /results -->)', re.DOTALL)


def write(
  found: Sequence[Mapping[str, Any]],
  docs: Path,
  *,
  about: str = '',
  name: str = 'results',
  readme: Path | None = None,
) -> None:
  """Writes name.html, name.md and its figures; updates the README.

  Args:
    found: of `report.experiments`.
    docs: the folder of the pages, beside that of the experiments.
    about: what is common to all runs, for the top of the pages.
    name: of the pages, and of their figures' folder, which is theirs alone.
    readme: gets the table of claims between its comments `results` and
      `/results`, if it has these.
  """
  figures = docs / FIGURES / name
  drawn = _figures(found)
  for file, text in drawn.items():
    write_text(figures / file, svg.alone(text))
  for file in {f.name for f in figures.glob('*.svg')} - drawn.keys():
    (figures / file).unlink()
  write_text(docs / f'{name}.html', html(found, about))
  write_text(docs / f'{name}.md', markdown(found, about, name))
  if readme and readme.exists():
    page = f'{docs.name}/{name}.md'
    table = tables.markdown(report.claims(found, page), ())
    text = MARKED.sub(rf'\g<1>\n{_literal(table)}\n\2', readme.read_text())
    write_text(readme, text)


def html(found: Sequence[Mapping[str, Any]], about: str = '') -> str:
  """The page, with all that it shows in it."""
  return _render('results.html.j2', found, about)


def markdown(
  found: Sequence[Mapping[str, Any]], about: str = '', name: str = 'results'
) -> str:
  """The page in Markdown, which links to the figures."""
  text = _render('results.md.j2', found, about, f'{FIGURES}/{name}')
  return re.sub(r'\n{3,}', '\n\n', text).rstrip() + '\n'


def _render(
  template: str,
  found: Sequence[Mapping[str, Any]],
  about: str,
  figures: str = '',
) -> str:
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('upcycle.results'),
    autoescape=lambda name: '.html' in name,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  environment.filters |= {
    'cell': tables.cell,
    'markdown': lambda rows: tables.markdown(rows, ()),
    'prefixed': svg.prefixed,
  }
  return environment.get_template(template).render(
    experiments=report.by_claim(found),
    modalities=report.MODALITIES,
    claims=report.claims(found),
    rule=f'{verdicts.RULE} {BARS}',
    about=about,
    figures=figures,
  )


def _figures(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  return {
    f'{one["name"]}_{modality}.svg': part['figure']['svg']
    for one in found
    for modality, part in one['parts'].items()
    if part['figure']['svg']
  }


def _literal(text: str) -> str:
  """For the right side of a substitution."""
  return text.replace('\\', r'\\')
