# SPDX-License-Identifier: Apache-2.0
r"""What routing does, in pictures: of two runs, one of a T5 and one of a ViT.

  python experiments/21_routing/figures.py --t5=MODEL_DIR --vit=MODEL_DIR
  python experiments/21_routing/figures.py

The runs are upcycled ones; the more checkpoints they have kept
(train.train.keep_checkpoints = None), the more points has what is drawn over
training. Their numbers go to data.json; without runs it is drawn again. Figures
and their captions are written to figures/.
"""

import argparse
import functools
import json
from pathlib import Path
import re
import sys

import numpy as np

from upcycle.results import metrics, pictures
from upcycle.results.figures import COLOURS

HERE = Path(__file__).resolve().parent
NAMES = {'t5': 'T5', 'vit': 'ViT'}
SHADES = ('#3B4CC0', '#7B9FF9', '#C0C0C0', '#F4987A', '#B40426')
EXPERTS = (*COLOURS, '#8F5BE8', '#999999')


def main() -> None:
  args = _parse()
  runs = {name: folder for name, folder in vars(args).items() if folder}
  file = HERE / 'data.json'
  data = json.loads(file.read_text()) if file.exists() else {}
  if runs:
    import measure

    data |= {name: measure.of_run(folder) for name, folder in runs.items()}
    text = json.dumps(data, separators=(',', ':'), ensure_ascii=False)
    metrics.write_text(file, text + '\n')
  data = {name: data[name] for name in NAMES if name in data}
  if not data:
    raise ValueError(f'{file} is not there: name runs by --t5 and --vit.')
  for path in pictures.write(HERE / 'figures', drawn(data)):
    print(path)


def drawn(data: dict) -> dict:
  """By name a function that draws a figure, and its caption."""
  found = {
    'load': (load, LOAD),
    'takers': (takers, TAKERS),
    'drift': (drift, DRIFT),
    'updates': (updates, UPDATES),
  }
  if 't5' in data:
    found['text'] = text, TEXT
  if 'vit' in data:
    found |= {'glyphs': (glyphs, GLYPHS), 'patches': (patches, PATCHES)}
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
TEXT = (
  'Tokens of the encoder by expert, on validation text: for each expert the '
  'pieces of which it takes the largest share (of those seen ten times or '
  'more), and the tokens of which the router is surest, with their context; '
  '<0> is a masked span.'
)
GLYPHS = (
  'Validation images, of typefaces that training has not seen, each patch in '
  'the colour of the expert with the largest combine weight, in the last two '
  'MoE layers; black and white: nobody took it.'
)
PATCHES = (
  'By expert of the last MoE layer: how often it takes each place of an image '
  '(the brighter, the more often), and the patches of which the router is '
  'surest, at most one an image, within their images.'
)


def load(data):
  panels = [(x, y) for x in data for y in data[x]['load']]
  figure, axes = _grid(len(panels), 8, 1.2)
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
    axis.set(title=_title(name, layer), ylabel='expert')
    axis.grid(visible=False)
  axes[-1].set_xlabel('extra steps')
  bar = figure.colorbar(image, ax=list(axes), ticks=[-1, 0, 1], shrink=0.6)
  bar.ax.set_yticklabels(['half', 'equal', 'twice'])
  return figure


def takers(data):
  panels = [(x, y) for x in data for y in data[x]['takers']]
  figure, axes = _grid(len(panels), 8, 1.7, columns=2)
  for axis, (name, layer) in zip(axes, panels, strict=False):
    found = data[name]['takers'][layer]
    steps = [row['step'] for row in found]
    shares = np.array([row['shares'] for row in found]).T
    most = len(shares) - 1
    labels = [*map(str, range(most)), f'{most} or more']
    axis.stackplot(steps, shares, labels=labels, colors=SHADES)
    axis.set(title=_title(name, layer), ylim=(0, 1), ylabel='share of tokens')
    axis.margins(x=0)
  _label_lowest(axes[: len(panels)], 'extra steps')
  axes[0].figure.legend(
    *axes[0].get_legend_handles_labels(),
    loc='outside lower center',
    ncols=5,
    title='experts of a token',
  )
  return figure


def drift(data):
  figure, axes = _grid(3 * len(data), 9, 2.5, columns=3)
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
        axis.plot(steps, mean, color=colour, label=_title('', layer))
        axis.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
      axis.set(title=title, xlabel='extra steps')
    row[0].set(ylabel=NAMES[name])
    row[1].legend()
  return figure


def updates(data):
  panels = [(x, y) for x in data for y in data[x]['drift']]
  figure, axes = _grid(len(panels), 9, 1.6, columns=len(panels))
  for axis, (name, layer) in zip(axes, panels, strict=True):
    cosines = np.array(data[name]['drift'][layer][-1]['updates'], float)
    np.fill_diagonal(cosines, np.nan)
    image = axis.imshow(
      cosines, cmap='RdBu_r', vmin=-0.5, vmax=0.5, interpolation='none'
    )
    axis.set(title=_title(name, layer), xlabel='expert')
    axis.grid(visible=False)
  axes[0].set_ylabel('expert')
  figure.colorbar(image, ax=list(axes), shrink=0.6)
  return figure


def text(data):
  """A concordance: what stands before a token, the token, what comes after."""
  import matplotlib.pyplot as plt

  experts = list(data['t5']['tokens'].values())[-1]['experts']
  half, height = -(-len(experts) // 2), 6.2
  # Places of its own: a layout would make room for what text has anyway.
  figure = plt.figure(figsize=(11, 1.1 * half), layout='none')
  axes = [figure.add_axes((x, 0, 0.5, 1)) for x in (0, 0.5)]
  for i, expert in enumerate(experts):
    axis, top = axes[i // half], height * (i % half)
    style = {'color': EXPERTS[i % len(EXPERTS)], 'weight': 'bold'}
    axis.text(0, top, f'expert {i}', size=8, **style)
    shares = [f'{_shown(p)} {s:.0%} of {n}' for p, s, n in expert['pieces']]
    axis.text(0.15, top, ', '.join(shares[:4]), size=7)
    for j, example in enumerate(expert['examples'], 1):
      y, at = top + 1.05 * j, {'size': 7.5}
      piece = _shown(example['piece'])
      side = 0.0085 * len(piece) + 0.012
      left, right = example['left'][-36:], example['right'][:36]
      axis.text(0.5 - side, y, _plain(left), ha='right', **at)
      axis.text(0.5, y, piece, ha='center', **at, **style)
      axis.text(0.5 + side, y, _plain(right), ha='left', **at)
  for axis in axes:
    axis.set(xlim=(0, 1), ylim=(height * half - 0.5, -1))
    axis.set_axis_off()
  return figure


def glyphs(data):
  tokens = data['vit']['tokens']
  shown, columns = list(tokens['layers'])[-2:], 12
  images = [_pixels(rows) for rows in tokens['images']]
  rows = len(shown) * -(-len(images) // columns)
  figure, axes = _grid(rows * columns, 9, 9 / columns, columns=columns)
  for axis in axes:
    axis.set_axis_off()
  for k, layer in enumerate(shown):
    for n, picture in enumerate(images):
      row, column = len(shown) * (n // columns) + k, n % columns
      axis = axes[row * columns + column]
      first = np.array(tokens['layers'][layer]['first'][n])
      tinted = _tinted(picture, first.reshape(tokens['grid']))
      axis.imshow(tinted, interpolation='none')
      if not column:
        middle = len(picture) / 2
        axis.text(-2, middle, _title('', layer), ha='right', va='center')
  handles = [
    axes[0].scatter([], [], marker='s', color=EXPERTS[e], label=f'{e}')
    for e in range(len(tokens['layers'][shown[-1]]['where']))
  ]
  figure.legend(
    handles=handles, loc='outside lower center', ncols=8, title='expert'
  )
  return figure


def patches(data):
  tokens = data['vit']['tokens']
  found, grid = list(tokens['layers'].values())[-1], tokens['grid']
  figure, axes = _grid(len(found['where']), 9, 0.72)
  most = np.max(found['where'])
  for e, axis in enumerate(axes):
    surest = found['surest'][e]
    images = [_pixels(x['image']) for x in surest]
    side = len(images[0])
    size, step = side // grid[0], side + 2
    often = np.reshape(found['where'][e], grid) / most
    row = np.full((side, (len(images) + 1) * step), np.nan)
    for i, cell in enumerate([_stretched(often, size), *images]):
      row[:, i * step : i * step + side] = cell
    axis.imshow(row, cmap='gray', vmin=0, vmax=1, interpolation='none')
    for i, x in enumerate(surest, 1):
      y, x = np.array(divmod(x['place'], grid[1])) * size - 0.5
      _outline(axis, i * step + x, y, size, EXPERTS[e % len(EXPERTS)])
    axis.set_axis_off()
    axis.text(-3, side / 2, f'expert {e}', ha='right', va='center')
  return figure


def _outline(axis, x, y, size, colour):
  around = np.array([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)]) * size
  axis.plot(*(around + (x, y)).T, color=colour, lw=1.5)


def _pixels(rows):
  """Of strings of hexadecimal digits, in [0, 1]."""
  return np.array([[int(x, 16) / 15 for x in row] for row in rows])


def _grid(panels, width, height, columns=1):
  """A figure of enough panels, those that are not needed left blank."""
  import matplotlib.pyplot as plt

  rows = -(-panels // columns)
  figure, axes = plt.subplots(
    rows, columns, figsize=(width, 0.6 + height * rows), squeeze=False
  )
  for axis in axes.flat[panels:]:
    axis.set_axis_off()
  return figure, axes.ravel()


def _tinted(picture, first):
  """Pixels [H, W, 3] of grey ones, each patch in its expert's colour."""
  import matplotlib.colors

  table = [matplotlib.colors.to_rgb(c) for c in EXPERTS]
  colours = np.array([*table, (1, 1, 1)])[np.where(first < 0, -1, first)]
  size = len(picture) // len(first)
  tint = np.stack([_stretched(c, size) for c in np.moveaxis(colours, -1, 0)])
  share = 0.25 + 0.75 * picture[..., None]
  return np.clip(share * np.moveaxis(tint, 0, -1), 0, 1)


def _stretched(grid, times):
  """Every number as a square of as many pixels a side."""
  return np.kron(grid, np.ones((times, times)))


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


def _title(name, layer):
  kind = next((x for x in ('encoder/', 'decoder/') if x in layer), 'block ')
  number = int(re.search(r'_(\d+)', layer)[1])
  words = f'{kind.replace("/", " layer ")}{number}'
  return f'{NAMES[name]}, {words}' if name else words


def _label_lowest(axes, label):
  for axis in axes[-2:]:
    axis.set_xlabel(label)


def _shown(piece):
  """A piece on its own; a word's first has its space before it."""
  return _plain(piece.strip() or '␣')


def _plain(words):
  return words.replace('$', r'\$').replace('\n', ' ')


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name, words in NAMES.items():
    parser.add_argument(f'--{name}', type=Path, help=f"a {words}'s MODEL_DIR")
  return parser.parse_args()


if __name__ == '__main__':
  try:
    main()
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')
