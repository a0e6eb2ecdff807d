# SPDX-License-Identifier: Apache-2.0
"""Sparse upcycling on a laptop: one dense T5, continued dense and upcycled.

Prepares real text, pretrains a small dense T5, goes on from its checkpoint
twice, once dense and once upcycled, on the same batches, and draws what came
of it:

  python scripts/demo.py

Every step is a command that is shown and can be given by itself; what is
done already is not done again. Remove runs/t5_laptop to start anew.
"""

import argparse
from pathlib import Path
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path('runs/t5_laptop')
FIGURE = RUNS / 'figure'


def run(*command: str) -> None:
  """Shows and runs one of this repository's commands."""
  print(f'\n$ python {" ".join(command)}', flush=True)
  subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def train(name: str, **macros: str) -> None:
  """Trains with configs/{name}_t5_laptop.gin into runs/t5_laptop/{name}."""
  macros = {'MODEL_DIR': RUNS / name, **macros}
  run(
    'scripts/train.py',
    f'--gin_file=configs/{name}_t5_laptop.gin',
    *(f"--gin.{key}='{value}'" for key, value in macros.items()),
  )


def summary(dense: list[dict], sparse: list[dict]) -> str:
  """Three sentences on the two continuations' evaluations."""
  start, drop = dense[0]['loss'], sparse[0]['loss'] - dense[0]['loss']
  steps = dense[-1]['step'] - dense[0]['step']
  end = {row['step'] - dense[0]['step']: row['loss'] for row in sparse}
  ratio = sparse[-1]['seconds'] / (len(sparse) - 1)
  ratio /= dense[-1]['seconds'] / (len(dense) - 1)
  back = next((r for r in sparse if r['loss'] <= start), None)
  overtaken = next(
    (r for r in sparse[1:] if r['loss'] < level(dense, r['seconds'])), None
  )
  recovered = (
    'and it has not come back to it'
    if back is None
    else f'and it is back there after {back["step"] - dense[0]["step"]} steps'
  )
  verdict = (
    'has not overtaken the dense one for equal compute time'
    if overtaken is None
    else f'is ahead for equal compute time from {overtaken["seconds"]:.0f} s on'
  )
  return (
    f'Surgery raises the validation loss of the dense checkpoint, {start:.3f}, '
    f'by {drop:.3f} (the initial drop in quality), {recovered}.\n'
    f'After {steps} more steps the dense model is at {dense[-1]["loss"]:.3f}; '
    f'the upcycled one is at {end[max(end)]:.3f} after {max(end)}, each '
    f'of which took {ratio:.2f} times as long.\n'
    f'The upcycled model {verdict}.'
  )


def level(rows: list[dict], seconds: float) -> float:
  """The loss that a run had at a time, linearly between evaluations."""
  import numpy as np

  return float(
    np.interp(seconds, [r['seconds'] for r in rows], [r['loss'] for r in rows])
  )


def main() -> None:
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  ).parse_args()
  began = time.perf_counter()
  run('scripts/prepare_data.py', 'text')
  train('pretrain')
  for arm in ('dense', 'upcycle'):
    train(arm, DENSE_CHECKPOINT=RUNS / 'pretrain')

  from upcycle import results

  dense, sparse = (
    results.read(ROOT / RUNS / arm, 'eval') for arm in ('dense', 'upcycle')
  )
  files = results.comparison_figure(
    ROOT / FIGURE,
    {'dense continuation': dense, 'upcycled': sparse},
    dense=dense[0]['loss'],
    title='T5 on real text, from one dense checkpoint',
  )
  print(f'\n{summary(dense, sparse)}')
  print(f'\nFigure: {", ".join(str(f.relative_to(ROOT)) for f in files)}')
  print(f'{(time.perf_counter() - began) / 60:.1f} minutes')


if __name__ == '__main__':
  try:
    main()
  except subprocess.CalledProcessError as error:
    sys.exit(error.returncode)
