# SPDX-License-Identifier: Apache-2.0
"""Figures as SVG, in the colours and the font of the page that they are in."""

from collections.abc import Callable
import io
import re
from typing import Any

from upcycle.results import figures

INK = '#123456'  # becomes that of the text around it
THEME = {
  **figures.STYLE,
  **dict.fromkeys(
    (
      'text.color',
      'axes.labelcolor',
      'axes.edgecolor',
      'xtick.color',
      'ytick.color',
    ),
    INK,
  ),
  'figure.facecolor': 'none',
  'axes.facecolor': 'none',
  'grid.color': '#808080',
  'grid.alpha': 0.25,
  'legend.fontsize': 10,
  # Text remains text; its font is the page's.
  'svg.fonttype': 'none',
}
# Of a figure that stands alone.
INKS = (
  '<style>svg{color:#333;font-family:sans-serif}'
  '@media(prefers-color-scheme:dark){svg{color:#ccc}}</style>'
)


def drawn(panels: int, height: float, draw: Callable[[list[Any]], None]) -> str:
  """A figure of panels side by side, with one vertical axis.

  Args:
    panels: how many.
    height: in inches; a panel is 3.2 wide.
    draw: is given the panels' Axes.
  """
  import matplotlib.pyplot as plt

  with plt.rc_context(THEME):
    figure, grid = plt.subplots(
      1,
      panels,
      figsize=(3.2 * panels + 0.4, height),
      sharey=True,
      squeeze=False,
    )
    draw(list(grid[0]))
    return saved(figure)


def saved(figure: Any, **options: Any) -> str:
  """A figure that was drawn in THEME, which is closed.

  Args:
    figure: of matplotlib.
    **options: of its savefig.
  """
  import matplotlib.pyplot as plt

  file = io.StringIO()
  figure.savefig(file, format='svg', metadata={'Date': None}, **options)
  plt.close(figure)
  return re.sub(r'font-family: [^;"]*;? ?', '', clean(file.getvalue()))


def clean(svg: str) -> str:
  """An SVG to be put into a page: without what names other resources."""
  svg = re.sub(r'^.*?(?=<svg\b)', '', svg, flags=re.DOTALL)
  svg = re.sub(r'\s*<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  svg = svg.replace(INKS, '')
  # Matplotlib turns every text, mostly by nothing.
  svg = re.sub(r' transform="rotate\(-0 [^"]*"', '', svg)
  return svg.replace(INK, 'currentColor').strip()


def prefixed(svg: str, prefix: str) -> str:
  """The same with other ids, for a page that has several figures."""
  return re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{prefix}-', svg)


def alone(svg: str) -> str:
  """The same as a file of its own."""
  return re.sub(r'(<svg\b[^>]*>)', rf'\1{INKS}', svg, count=1) + '\n'
