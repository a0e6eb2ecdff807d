# SPDX-License-Identifier: Apache-2.0
"""Sparse upcycling on a laptop: one dense model, continued dense and upcycled.

  python scripts/demo.py t5
  python scripts/demo.py vit

prepares real text, or images of letters, and goes on from one dense model
twice, once dense and once upcycled, on the same batches, and draws what came of
it. The small dense T5 is that of experiments/00_demo; the small dense ViT is
trained first. Every step is a command that is shown and can be given by itself;
what is done already is not done again. Remove runs/demo_t5 or runs/demo_vit to
start anew.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
import shlex
import subprocess
import sys
import time
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DENSE_T5 = Path('experiments/00_demo')


class Demo(NamedTuple):
  """What differs between the demos.

  prepare returns the macros of the gin files; metrics are their labels by name.
  """

  title: str
  prepare: Callable[[Path], dict[str, Path]]
  metrics: dict[str, str]


def run(*command: str) -> None:
  """Shows and runs one of this repository's commands."""
  command = [sys.executable, *command]
  print(f'\n$ {shlex.join(command)}', flush=True)
  subprocess.run(command, cwd=ROOT, check=True)


def train(config: str, macros: Mapping[str, Path]) -> None:
  """Trains with a gin file of configs/."""
  run(
    'scripts/train.py',
    f'--gin_file=configs/{config}.gin',
    *(f"--gin.{name}='{value}'" for name, value in macros.items()),
  )


def prepare_text(_: Path) -> dict[str, Path]:
  """Tokenizes the text with the dense T5's vocabulary."""
  vocabulary = DENSE_T5 / 'vocabulary.model'
  run('scripts/prepare_data.py', 'text', f'--vocabulary={vocabulary}')
  # Without npm it is the smaller mix 'pip', which comes after 'default'.
  found = sorted((ROOT / 'data/text').glob(f'*_{vocabulary.stem}_*'))
  return {
    'CORPUS': found[0].relative_to(ROOT),
    'DENSE_CHECKPOINT': DENSE_T5,
  }


def prepare_images(runs: Path) -> dict[str, Path]:
  """Renders the letters, and trains the dense ViT on them."""
  run('scripts/prepare_data.py', 'images', '--sets=glyphs,mnist')
  train('pretrain_vit_laptop', {'MODEL_DIR': runs / 'pretrain'})
  return {'DENSE_CHECKPOINT': runs / 'pretrain'}


DEMOS = {
  't5': Demo(
    'A small T5 on real text, from one dense checkpoint',
    prepare_text,
    {'loss': 'validation loss'},
  ),
  'vit': Demo(
    'A small ViT on letters, from one dense checkpoint',
    prepare_images,
    {
      'accuracy': 'precision@1, unseen typefaces',
      '10shot/mnist': '10-shot accuracy on MNIST',
    },
  ),
}


def continued(arm: str, name: str, macros: Mapping[str, Path]) -> list[dict]:
  """Trains one arm; returns its evaluations, of all kinds."""
  from upcycle import results

  folder = Path('runs') / f'demo_{name}' / arm
  train(f'{arm}_{name}_laptop', {**macros, 'MODEL_DIR': folder})
  splits = ('eval', 'fewshot')
  return [row for s in splits for row in results.read(ROOT / folder, s)]


def summary(demo: Demo, dense: list[dict], sparse: list[dict]) -> str:
  """What the evaluations of the two continuations say, metric by metric."""
  from upcycle.results import compare, spent

  arms = {
    'the dense': [spent.of_rows(dense)],
    'the upcycled': [spent.of_rows(sparse)],
  }
  lines = []
  for name, label in demo.metrics.items():
    (metric,) = compare.metrics(arms, name)
    curves = {
      arm: [run.curves[metric] for run in runs] for arm, runs in arms.items()
    }
    (a,), (b,) = curves.values()
    ahead = {axis: verdict(metric, curves, axis) for axis in spent.AXES}
    lines.append(
      f'{label}: {a[0, 3]:.3f} at the dense checkpoint, {b[0, 3]:.3f} right '
      f'after surgery; {a[-1, 0]:.0f} steps later {a[-1, 3]:.3f} dense and '
      f'{b[-1, 3]:.3f} upcycled. For equal steps {ahead["steps"]}, for '
      f'equal compute time {ahead["seconds"]}.'
    )
  a, b = (run.cost['step_seconds'] for (run,) in arms.values())
  return '\n'.join(
    [*lines, f'An upcycled step takes {b / a:.2f} times as long.']
  )


def verdict(metric: str, curves: Mapping[str, list], axis: str) -> str:
  """Which arm is ahead at the end of what both have spent, and by how much."""
  from upcycle.results import compare, spent

  _, values = compare.at_equal(curves, spent.AXES.index(axis))
  ahead = max(values, key=lambda arm: spent.sign(metric) * values[arm][0])
  (a,), (b,) = values.values()
  return f'{ahead} model is ahead by {abs(a - b):.3f}'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('name', choices=sorted(DEMOS))
  name = parser.parse_args().name
  demo, began = DEMOS[name], time.perf_counter()
  macros = demo.prepare(Path('runs') / f'demo_{name}')
  dense, sparse = (continued(arm, name, macros) for arm in ('dense', 'upcycle'))

  from upcycle import results

  first = {key: row[key] for row in reversed(dense) for key in row}
  files = results.comparison_figure(
    ROOT / 'runs' / f'demo_{name}' / 'figure',
    {'dense continuation': dense, 'upcycled': sparse},
    metrics=demo.metrics,
    dense={key: first[key] for key in demo.metrics},
    title=demo.title,
  )
  print(f'\n{summary(demo, dense, sparse)}')
  print(f'\nFigure: {", ".join(str(f.relative_to(ROOT)) for f in files)}')
  print(f'{(time.perf_counter() - began) / 60:.1f} minutes')


if __name__ == '__main__':
  try:
    main()
  except subprocess.CalledProcessError as error:
    sys.exit(error.returncode)
