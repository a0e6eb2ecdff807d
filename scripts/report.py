# SPDX-License-Identifier: Apache-2.0
"""Writes what all experiments have found: a page, and its Markdown twin.

  python scripts/report.py
  python scripts/report.py --scale=base

reads every experiments/NN_name/ with a sweep.py, and its results.jsonl where
there is one, and writes docs/results.html, which needs nothing else to be
looked at, docs/results.md with docs/figures/results/, and the table of claims
between the comments `results` and `/results` of README.md, if it has these.
Pages of another scale than 'laptop' are docs/results_<scale>.*, and leave the
README alone. The same results give the same bytes.
"""

import argparse
from pathlib import Path
import sys

from upcycle.results import report, report_pages

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # sweeps import experiments.arms


def main() -> None:
  from experiments import arms

  args = _parse()
  folders = sorted((args.root / 'experiments').glob('[0-9][0-9]_*'))
  found = report.experiments(folders, args.scale)
  docs, usual = args.root / 'docs', args.scale == 'laptop'
  name = 'results' if usual else f'results_{args.scale}'
  report_pages.write(
    found,
    docs,
    about=arms.ABOUT.get(args.scale, ''),
    name=name,
    readme=args.root / 'README.md' if usual else None,
  )
  print(docs / f'{name}.html')


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--scale', default='laptop', help='a key of SCALES')
  parser.add_argument(
    '--root', type=Path, default=ROOT, help='has experiments/ and docs/'
  )
  return parser.parse_args()


if __name__ == '__main__':
  try:
    main()
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')
