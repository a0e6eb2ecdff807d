# SPDX-License-Identifier: Apache-2.0
r"""What routing does, in pictures: of two runs, one of a T5 and one of a ViT.

  python experiments/21_routing/figures.py --measure
  python experiments/21_routing/figures.py

Measured are the runs of results.jsonl, by all checkpoints that they have kept:
the more, the more points has what is drawn over training. Numbers go to
data.json; without --measure it is drawn again. Figures and their captions are
written to figures/.
"""

import argparse
import functools
import json
from pathlib import Path
import runpy
import sys

import layout
import numpy as np
import token_figures

from upcycle.results import metrics, pictures, sweep
from upcycle.results.figures import COLOURS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SHADES = ('#3B4CC0', '#7B9FF9', '#C0C0C0', '#F4987A', '#B40426')


def main() -> None:
  args = _parse()
  file = HERE / 'data.json'
  if args.measure:
    import measure

    data = {name: measure.of_run(run) for name, run in trained().items()}
    text = json.dumps(data, separators=(',', ':'), ensure_ascii=False)
    metrics.write_text(file, text + '\n')
  data = json.loads(file.read_text())
  for path in pictures.write(HERE / 'figures', drawn(data)):
    print(path)


def trained() -> dict[str, Path]:
  """MODEL_DIRs by modality.

  Raises:
    ValueError: there are none yet.
  """
  file = HERE / 'results.jsonl'
  rows = metrics.read(file) if file.exists() else []
  asked = runpy.run_path(str(HERE / 'sweep.py'))['SCALES']['laptop']
  made = [sweep.find({'scale': 'laptop', **run}, rows) for run in asked]
  runs = {
    row['modality']: ROOT / row['model_dir']
    for row in made
    if row and 'error' not in row and (ROOT / row['model_dir']).exists()
  }
  lacking = layout.NAMES.keys() - runs.keys()
  if lacking:
    raise ValueError(
      f'{file} has no run of {" and ".join(sorted(lacking))} that is here. '
      'Without their lines there, python scripts/sweep.py '
      'experiments/21_routing --scale=laptop makes them; without --measure, '
      'data.json is drawn again.'
    )
  return {name: runs[name] for name in layout.NAMES}


def drawn(data: dict) -> dict:
  """By name a function that draws a figure, and its caption."""
  found = {
    'load': (load, LOAD),
    'takers': (takers, TAKERS),
    'drift': (drift, DRIFT),
    'updates': (updates, UPDATES),
    'text': (token_figures.text, token_figures.TEXT),
    'glyphs': (token_figures.glyphs, token_figures.GLYPHS),
    'patches': (token_figures.patches, token_figures.PATCHES),
  }
  return {
    name: (functools.partial(draw, data), caption)
    for name, (draw, caption) in found.items()
  }


LOAD = (
  'Load: the share of all filled slots that an expert has, in training. White '
  'is an equal share, blue half of it or less, red twice it or more. With '
  'Expert Choice it is equal by construction, which is what the white panels '
  'say; only the decoder of T5, where tokens choose, could be unbalanced.'
)
TAKERS = (
  'How many experts take a token, on validation data. With Expert Choice this '
  'is free, and its mean is the capacity factor, 2; in the decoder of T5 it is '
  'the two that a token has chosen, or fewer where they were full. Tokens that '
  'nobody takes go by the residual connection alone.'
)
DRIFT = (
  'How far experts move away from the dense MLP they were copied from, and '
  'from each other. Left: |expert - dense| / |dense|; middle: cosine of two '
  'experts; right: cosine of what training has added to them. Lines are means '
  'over experts or pairs of them, bands go from the least to the most.'
)
UPDATES = (
  'Cosines of what training has added to any two experts of a layer, at the '
  'end of the run: 0 where they have learned unrelated things.'
)


def load(data):
  panels = [(x, y) for x in data for y in data[x]['load']]
  figure, axes = layout.grid(len(panels), 8, 1.2)
  for axis, (name, layer) in zip(axes, panels, strict=True):
    found = data[name]['load'][layer]
    shares = np.array(found['shares'], float).T
    heat = np.log2(np.maximum(shares * len(shares), 1e-3))
    image = axis.pcolormesh(
      _edges(found['steps']),
      np.arange(len(shares) + 1) - 0.5,
      heat,
      cmap='RdBu_r',
      vmin=-1,
      vmax=1,
      rasterized=True,
    )
    axis.set(title=layout.title(name, layer), ylabel='expert')
    axis.grid(visible=False)
  axes[-1].set_xlabel('extra steps')
  bar = figure.colorbar(image, ax=list(axes), ticks=[-1, 0, 1], shrink=0.6)
  bar.ax.set_yticklabels(['half', 'equal', 'twice'])
  return figure


def takers(data):
  panels = [(x, y) for x in data for y in data[x]['takers']]
  figure, axes = layout.grid(len(panels), 8, 1.7, columns=2)
  for axis, (name, layer) in zip(axes, panels, strict=False):
    found = data[name]['takers'][layer]
    steps = [row['step'] for row in found]
    shares = np.array([row['shares'] for row in found]).T
    most = len(shares) - 1
    labels = [*map(str, range(most)), f'{most} or more']
    axis.stackplot(steps, shares, labels=labels, colors=SHADES)
    axis.set(
      title=layout.title(name, layer), ylim=(0, 1), ylabel='share of tokens'
    )
    axis.margins(x=0)
  layout.label_lowest(axes[: len(panels)], 'extra steps')
  axes[0].figure.legend(
    *axes[0].get_legend_handles_labels(),
    loc='outside lower center',
    ncols=5,
    title='experts of a token',
  )
  return figure


def drift(data):
  figure, axes = layout.grid(3 * len(data), 9, 2.5, columns=3)
  titles = {
    'distance': 'distance from the dense MLP',
    'experts': 'cosine of two experts',
    'updates': 'cosine of two updates',
  }
  for row, (name, run) in zip(axes.reshape(-1, 3), data.items(), strict=True):
    for axis, (key, title) in zip(row, titles.items(), strict=True):
      for colour, (layer, found) in zip(
        COLOURS, run['drift'].items(), strict=False
      ):
        start = {'distance': 0, 'experts': 1}.get(key)
        points = [] if start is None else [(0, *[start] * 3)]
        for at in found:
          values = _pairs(np.array(at[key], float))
          points.append((at['step'], values.mean(), values.min(), values.max()))
        steps, mean, low, high = np.array(points).T
        axis.plot(steps, mean, color=colour, label=layout.title('', layer))
        axis.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
      axis.set(title=title, xlabel='extra steps')
    row[0].set(ylabel=layout.NAMES[name])
    row[1].legend()
  return figure


def updates(data):
  panels = [(x, y) for x in data for y in data[x]['drift']]
  figure, axes = layout.grid(len(panels), 9, 1.6, columns=len(panels))
  for axis, (name, layer) in zip(axes, panels, strict=True):
    cosines = np.array(data[name]['drift'][layer][-1]['updates'], float)
    np.fill_diagonal(cosines, np.nan)
    image = axis.imshow(
      cosines, cmap='RdBu_r', vmin=-0.5, vmax=0.5, interpolation='none'
    )
    axis.set(title=layout.title(name, layer), xlabel='expert')
    axis.grid(visible=False)
  axes[0].set_ylabel('expert')
  figure.colorbar(image, ax=list(axes), shrink=0.6)
  return figure


def _pairs(values):
  """Off the diagonal of [E, E]; all of [E]."""
  if values.ndim == 1:
    return values
  return values[~np.eye(len(values), dtype=bool)]


def _edges(steps):
  """Borders of cells around the steps, for as many columns."""
  steps = np.array(steps, float)
  width = np.diff(steps, prepend=0)
  return np.concatenate([[steps[0] - width[0]], steps])


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--measure', action='store_true', help='anew, what the runs have become'
  )
  return parser.parse_args()


if __name__ == '__main__':
  try:
    main()
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')
