# SPDX-License-Identifier: Apache-2.0
r"""Scaling laws of upcycling, fitted to what other experiments have measured.

  python experiments/20_scaling/fit.py

reads results.jsonl of 06_pretraining and 04_scratch, prints the parameters of
`upcycle.results.scaling` and the budgets from which on a sparse model from
scratch is better, with 95% bootstrap intervals over seeds, and writes fit.json,
which has every scale that was fitted, and figures/.
"""

import argparse
import functools
import json
from pathlib import Path
import sys

import numpy as np

from upcycle.results import (
  metrics,
  pictures,
  scaling,
  scaling_words,
  sweep,
  tables,
)
from upcycle.results.figures import COLOURS

HERE = Path(__file__).resolve().parent
SOURCES = '06_pretraining', '04_scratch'
METRIC = 'eval/loss'
TICKS = [m * 10.0**e for e in range(-3, 4) for m in (1, 2, 5)]
CAPTION = (
  'Loss after an extra budget, of models upcycled from dense ones of several '
  'budgets and of sparse ones from scratch: dots are evaluations of all seeds, '
  'lines the fitted laws, dashed where they go beyond what was measured. '
  'Vertical lines: from there on scratch is better. Budgets are in units of '
  'the largest dense one.'
)


def main() -> None:
  args = _parse()
  files = [args.experiments / name / 'results.jsonl' for name in SOURCES]
  missing = [str(file) for file in files if not file.exists()]
  if missing:
    raise ValueError(
      f'There is no {", ".join(missing)}: run the experiments first, by '
      'scripts/sweep.py.'
    )
  read = [row for file in files for row in metrics.read(file)]
  # The newest of a name: those before were of other settings.
  rows = {row['name']: row for row in read if row['scale'] == args.scale}
  found, faults = {}, []
  for (modality,), those in sweep.groups(rows.values(), 'modality').items():
    try:
      found[modality] = of_rows(those)
    except ValueError as error:
      faults.append(f'{modality}: {error}')
  if not found:
    raise ValueError(
      '; '.join(faults) or f'There are no results of scale {args.scale}.'
    )
  for fault in faults:
    print(fault)
  file = args.output / 'fit.json'
  written = json.loads(file.read_text()) if file.exists() else {}
  written[args.scale] = {name: fitted for name, (_, fitted) in found.items()}
  # JSON has no infinity: null stands for it.
  plain = json.loads(json.dumps(written), parse_constant=lambda _: None)
  metrics.write_text(file, json.dumps(plain, indent=2) + '\n')
  draw = {'losses': (functools.partial(losses, found), CAPTION)}
  pictures.write(args.output / 'figures', draw)
  from rich import console

  console.Console().print(
    tables.rich_table(scaling_words.table(plain[args.scale]))
  )


def of_rows(rows: list[dict]) -> tuple[scaling.Points, dict]:
  """Points of one modality, and what is fitted to them, each with an interval.

  Raises:
    ValueError: there is too little.
  """
  data, unit = scaling.points(
    [row for row in rows if row['arm'].startswith(('upcycled', 'scratch'))],
    METRIC,
    _dense_step(rows),
  )
  data, incomplete = scaling.complete(data)
  if incomplete:
    print(
      f'{rows[0]["modality"]}: without seeds {incomplete}, which lack a dense '
      'budget or scratch.'
    )
  budgets = np.unique(data.dense[data.dense > 0])
  names = scaling.Law._fields

  def answers(law: scaling.Law) -> list[float]:
    shares = [scaling.crossing(law, D) / D for D in budgets]
    return [*law, *shares]

  values = zip(
    answers(scaling.fit(data)), *scaling.bootstrap(data, answers), strict=True
  )
  values = [
    {'mean': v, 'low': float(low), 'high': float(high)}
    for v, low, high in values
  ]
  return data, {
    'unit': unit,
    'seeds': len(np.unique(data.seed)),
    'law': dict(zip(names, values, strict=False)),
    'crossings': [
      {
        'dense': float(D),
        'share': share,
        'measured': float(
          min(data.extra[data.dense == x].max() for x in (0, D))
        ),
      }
      for D, share in zip(budgets, values[len(names) :], strict=True)
    ],
  }


def losses(found: dict):
  """A panel a modality."""
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(
    1, len(found), figsize=(4.6 * len(found), 3.6), squeeze=False
  )
  for axis, (modality, (data, fitted)) in zip(
    axes[0], found.items(), strict=True
  ):
    values = fitted['law'].items()
    law = scaling.Law(**{name: value['mean'] for name, value in values})
    most = 4 * data.extra.max()
    for colour, D in zip(COLOURS, np.unique(data.dense), strict=False):
      of = data.dense == D
      axis.plot(data.extra[of], data.loss[of], '.', color=colour, alpha=0.4)
      end = data.extra[of].max()
      for reach, style in (((data.extra.min(), end), '-'), ((end, most), '--')):
        x = np.geomspace(*reach, 100)
        y = law.upcycled(D, x) if D else law.scratch(x)
        label = f'upcycled from {D:.3g}' if D else 'from scratch'
        label = label if style == '-' else None
        axis.plot(x, y, style, color=colour, lw=1.3, label=label)
      if D and data.extra.min() < scaling.crossing(law, D) < most:
        axis.axvline(scaling.crossing(law, D), color=colour, lw=0.8)
    axis.set(xscale='log', xlabel='extra budget', title=modality)
    axis.set(yscale='log', ylabel='loss')
    for of in (axis.xaxis, axis.yaxis):
      low, high = of.get_view_interval()
      ticks = [tick for tick in TICKS if low < tick < high]
      of.set_ticks(ticks, [f'{tick:g}' for tick in ticks])
      of.set_ticks([], minor=True)
    axis.legend()
  return figure


def _dense_step(rows: list[dict]) -> float:
  """FLOPs of a step of the dense model."""
  for row in rows:
    if row['arm'].startswith('dense') and METRIC in row.get('curves', {}):
      steps, flops, *_ = row['curves'][METRIC][-1]
      return flops / steps
  raise ValueError(
    f'No dense run among the results of {SOURCES[0]} says what a dense step '
    'costs: run that experiment first.'
  )


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--scale', default='laptop', help='of the experiments')
  parser.add_argument(
    '--experiments', type=Path, default=HERE.parent, help='their folder'
  )
  parser.add_argument('--output', type=Path, default=HERE, help='a folder')
  return parser.parse_args()


if __name__ == '__main__':
  try:
    main()
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')
