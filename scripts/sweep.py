# SPDX-License-Identifier: Apache-2.0
"""Runs what is missing of an experiment, and sums it up.

  python scripts/sweep.py experiments/01_vit_finetune --scale=laptop
  python scripts/sweep.py experiments/01_vit_finetune --scale=base --list

An experiment is a folder with sweep.py: lists of runs by scale in SCALES, and
summary(rows), the words to print at the end. Results go to results.jsonl in
that folder, a line a run, and MODEL_DIRs to runs/. The same command goes on
with a sweep that was stopped; --list prints the commands of what is missing,
for a scheduler, after which the same command without it gathers the results.
"""

import argparse
import datetime
from pathlib import Path
import runpy
import shlex
import subprocess
import sys
import time

from upcycle import results
from upcycle.results import sweep

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
  args = _parse()
  experiment = args.experiment.resolve()
  found = runpy.run_path(str(experiment / 'sweep.py'))
  if args.scale not in found['SCALES']:
    raise ValueError(f'--scale is one of {", ".join(found["SCALES"])}.')
  runs = [{'scale': args.scale, **run} for run in found['SCALES'][args.scale]]
  sweep.check(runs)
  file = experiment / 'results.jsonl'
  rows = results.read(file) if file.exists() else []
  left = [run for run in runs if sweep.find(run, rows) is None]
  folder = Path('runs', experiment.name, args.scale)
  if args.list:
    for run in left:
      print(shlex.join(['python', *sweep.command(run, folder / run['name'])]))
    return
  began = time.monotonic()
  for i, run in enumerate(left):
    seconds = (time.monotonic() - began) / i * (len(left) - i) if i else 0
    eta = f', ETA {datetime.timedelta(seconds=round(seconds))}' if i else ''
    number = len(runs) - len(left) + i + 1
    print(f'\n[{number}/{len(runs)}{eta}] {run["name"]}', flush=True)
    results.append(file, train(run, folder / run['name']))
  rows = results.read(file)
  print('\n' + found['summary']([sweep.find(run, rows) for run in runs]))


def train(run: sweep.Run, folder: Path) -> dict:
  """Trains a run, or goes on with it, and returns its row of results.

  A run that diverges is a result; any other failure ends the sweep.
  """
  command = [sys.executable, *sweep.command(run, folder)]
  done = subprocess.run(
    command, cwd=ROOT, check=False, text=True, stderr=subprocess.PIPE
  )
  if not done.returncode:
    return sweep.result(run, ROOT / folder)
  lines = [x for x in done.stderr.splitlines() if x.startswith('FloatingPoint')]
  if lines:
    print(lines[0], flush=True)
    return {**run, 'error': lines[0]}
  sys.exit(f'{done.stderr}\nThe sweep goes on with the same command, after:\n'
           f'{shlex.join(command)}')  # fmt: skip


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('experiment', type=Path, help='its folder')
  parser.add_argument('--scale', required=True, help='a key of its SCALES')
  parser.add_argument(
    '--list', action='store_true', help='prints one command a run'
  )
  return parser.parse_args()


if __name__ == '__main__':
  try:
    main()
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')
