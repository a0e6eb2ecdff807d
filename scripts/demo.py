# SPDX-License-Identifier: Apache-2.0
"""Sparse upcycling on a laptop: one dense T5, continued dense and upcycled.

  python scripts/demo.py

prepares real text, takes the small dense T5 of experiments/00_demo, goes on
from it twice, once dense and once upcycled, on the same batches, and draws what
came of it. Every step is a command that is shown and can be given by itself;
what is done already is not done again. Remove runs/demo_t5 to start anew.
"""

import argparse
from pathlib import Path
import shlex
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parent.parent
DENSE = Path('experiments/00_demo')
RUNS = Path('runs/demo_t5')


def run(*command: str) -> None:
  """Shows and runs one of this repository's commands."""
  command = [sys.executable, *command]
  print(f'\n$ {shlex.join(command)}', flush=True)
  subprocess.run(command, cwd=ROOT, check=True)


def prepare() -> Path:
  """Tokenizes the text with the dense model's vocabulary."""
  vocabulary = DENSE / 'vocabulary.model'
  run('scripts/prepare_data.py', 'text', f'--vocabulary={vocabulary}')
  # Without npm it is the smaller mix 'pip', which comes after 'default'.
  found = sorted((ROOT / 'data/text').glob(f'*_{vocabulary.stem}_*'))
  return found[0].relative_to(ROOT)


def train(arm: str, corpus: Path) -> list[dict]:
  """Trains with configs/{arm}_t5_laptop.gin; returns the evaluations."""
  from upcycle import results

  macros = {
    'CORPUS': corpus,
    'DENSE_CHECKPOINT': DENSE,
    'MODEL_DIR': RUNS / arm,
  }
  run(
    'scripts/train.py',
    f'--gin_file=configs/{arm}_t5_laptop.gin',
    *(f"--gin.{name}='{value}'" for name, value in macros.items()),
  )
  return results.read(ROOT / RUNS / arm, 'eval')


def summary(dense: list[dict], sparse: list[dict]) -> str:
  """Three sentences on the two continuations' evaluations."""
  start = dense[0]
  steps, extra = (rows[-1]['step'] - start['step'] for rows in (dense, sparse))
  ratio = sparse[-1]['seconds'] / extra / (dense[-1]['seconds'] / steps)
  back = next((r for r in sparse[1:] if r['loss'] <= start['loss']), None)
  recovered = (
    'and it has not come back to it'
    if back is None
    else f'and it is back there after {back["step"] - start["step"]} steps'
  )
  return (
    f'Surgery takes the validation loss of the dense checkpoint from '
    f'{start["loss"]:.3f} to {sparse[0]["loss"]:.3f}, the initial drop in '
    f'quality, {recovered}.\n'
    f'After {steps} more steps the dense model is at {dense[-1]["loss"]:.3f}, '
    f'and after {extra} the upcycled one is at {sparse[-1]["loss"]:.3f}; its '
    f'steps take {ratio:.2f} times as long.\n'
    f'For equal steps {verdict(dense, sparse, "step")}, for equal compute time '
    f'{verdict(dense, sparse, "seconds")}.'
  )


def verdict(dense: list[dict], sparse: list[dict], axis: str) -> str:
  """Which arm is ahead at the end of what both have spent, and by how much."""
  import numpy as np

  end = min(dense[-1][axis], sparse[-1][axis])
  at_end = [
    np.interp(end, [r[axis] for r in rows], [r['loss'] for r in rows])
    for rows in (dense, sparse)
  ]
  name = 'the upcycled' if at_end[1] < at_end[0] else 'the dense'
  return f'{name} model is ahead by {abs(at_end[0] - at_end[1]):.3f}'


def main() -> None:
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  ).parse_args()
  began = time.perf_counter()
  corpus = prepare()
  dense, sparse = (train(arm, corpus) for arm in ('dense', 'upcycle'))

  from upcycle import results

  files = results.comparison_figure(
    ROOT / RUNS / 'figure',
    {'dense continuation': dense, 'upcycled': sparse},
    dense=dense[0]['loss'],
    title='A small T5 on real text, from one dense checkpoint',
  )
  print(f'\n{summary(dense, sparse)}')
  print(f'\nFigure: {", ".join(str(f.relative_to(ROOT)) for f in files)}')
  print(f'{(time.perf_counter() - began) / 60:.1f} minutes')


if __name__ == '__main__':
  try:
    main()
  except subprocess.CalledProcessError as error:
    sys.exit(error.returncode)
