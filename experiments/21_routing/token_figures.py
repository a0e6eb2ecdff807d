# SPDX-License-Identifier: Apache-2.0
"""Which tokens go to which experts: pieces of text, patches of images."""

import layout
import numpy as np

from upcycle.results.figures import COLOURS

EXPERTS = (*COLOURS, '#8F5BE8', '#999999')
TEXT = (
  'Tokens of the encoder by expert, on validation text: for each expert the '
  'pieces of which it takes the largest share (of those seen ten times or '
  'more), and the tokens of which the router is surest, with their context; '
  '<0> is a masked span.'
)
GLYPHS = (
  'Validation images, which training has not seen, each patch in the colour of '
  'the expert with the largest combine weight, in the last two MoE layers; '
  'black and white: nobody took it.'
)
PATCHES = (
  'By expert of the last MoE layer: how often it takes each place of an image '
  '(the brighter, the more often), and the patches of which the router is '
  'surest, at most one an image, within their images.'
)


def text(data):
  """A concordance: what stands before a token, the token, what comes after."""
  import matplotlib.pyplot as plt

  experts = list(data['language']['tokens'].values())[-1]['experts']
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
  tokens = data['vision']['tokens']
  shown, columns = list(tokens['layers'])[-2:], 12
  images = [_pixels(rows) for rows in tokens['images']]
  rows = len(shown) * -(-len(images) // columns)
  figure, axes = layout.grid(rows * columns, 9, 9 / columns, columns=columns)
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
        axis.text(-2, middle, layout.title('', layer), ha='right', va='center')
  handles = [
    axes[0].scatter([], [], marker='s', color=EXPERTS[e], label=f'{e}')
    for e in range(len(tokens['layers'][shown[-1]]['where']))
  ]
  figure.legend(
    handles=handles, loc='outside lower center', ncols=8, title='expert'
  )
  return figure


def patches(data):
  tokens = data['vision']['tokens']
  found, grid = list(tokens['layers'].values())[-1], tokens['grid']
  figure, axes = layout.grid(len(found['where']), 9, 0.72)
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


def _shown(piece):
  """A piece on its own; a word's first has its space before it."""
  return _plain(piece.strip() or '␣')


def _plain(words):
  return words.replace('$', r'\$').replace('\n', ' ')
