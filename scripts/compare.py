# SPDX-License-Identifier: Apache-2.0
r"""Compares runs: quality per step, FLOP and second, training and inference.

  python scripts/compare.py dense=runs/demo_t5/dense \
    upcycled=runs/demo_t5/upcycle
  python scripts/compare.py dense=runs/a0 dense=runs/a1 sparse=runs/b0 \
    --metric=loss --output=table.md

A run is NAME=MODEL_DIR; those of one name are its seeds, and are shown as their
mean with its 95% interval. Others are compared with the first name. Steps,
seconds and operations (of matrix products) count from a run's first evaluation;
a quality is reached where the line between evaluations first does.
"""

import argparse
import json
from pathlib import Path
import sys

from upcycle import results
from upcycle.results import compare, spent, tables


def main() -> None:
  args = _parse()
  arms = spent.of_folders(_folders(args.runs))
  rows, notes = compare.rows(arms, args.metric), compare.notes(arms)
  found = {'rows': rows, 'notes': notes}
  text = json.dumps(found, indent=2) + '\n' if args.json else None
  if args.output:
    results.write_text(args.output, text or tables.markdown(rows, notes))
  if text:
    print(text, end='')
    return
  from rich import console

  screen = console.Console()
  screen.print(tables.rich_table(rows))
  for note in notes:
    screen.print(f'* {note}', style='dim', highlight=False)


def _folders(given: list[str]) -> dict[str, list[str]]:
  """The folders of each name."""
  pairs = [text.partition('=') for text in given]
  wrong = [''.join(p) for p in pairs if not all(p) or p[0] in ('of', 'what')]
  names = dict.fromkeys(p[0] for p in pairs)
  if wrong or len(names) < 2:
    bad = f'; not {", ".join(wrong)}' if wrong else ''
    raise ValueError(f'Runs are NAME=MODEL_DIR, of two names or more{bad}.')
  return {n: [folder for name, _, folder in pairs if name == n] for n in names}


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('runs', nargs='+', metavar='NAME=MODEL_DIR')
  parser.add_argument(
    '--metric', default='', help='only this one, such as loss or fewshot/...'
  )
  parser.add_argument('--output', type=Path, help='a file: Markdown, or JSON')
  parser.add_argument('--json', action='store_true', help='JSON, not a table')
  return parser.parse_args()


if __name__ == '__main__':
  try:
    main()
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')
