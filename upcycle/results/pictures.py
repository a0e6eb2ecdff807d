# SPDX-License-Identifier: Apache-2.0
"""Figures that stand on any background, with captions beside them."""

from collections.abc import Callable, Mapping
import json
import os
from pathlib import Path
from typing import Any

from upcycle.results import figures, metrics

INK = '#808080'  # can be read on white and on black
STYLE = figures.STYLE | {
  'figure.facecolor': 'none',
  'axes.facecolor': 'none',
  'savefig.facecolor': 'none',
  'text.color': INK,
  'axes.labelcolor': INK,
  'axes.titlecolor': INK,
  'xtick.color': INK,
  'ytick.color': INK,
  'grid.color': INK,
  'grid.alpha': 0.25,
  'font.size': 9,
  'axes.titlesize': 10,
  # Letters, not their outlines.
  'svg.fonttype': 'none',
}
Draw = Callable[[], Any]  # makes a matplotlib figure


def write(
  folder: str | os.PathLike, drawn: Mapping[str, tuple[Draw, str]]
) -> list[Path]:
  """Draws name.svg for every name, and captions.json of {file: caption}.

  Args:
    folder: of the files; made if it is not there.
    drawn: by name what draws it, and the caption.

  Returns:
    The SVGs; the same figure gives the same bytes.
  """
  import matplotlib.pyplot as plt

  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  files = {name: folder / f'{name}.svg' for name in drawn}
  for name, (draw, _) in drawn.items():
    with plt.rc_context(STYLE):
      figure = draw()
      new = folder / f'.{name}.tmp'
      plain = {'format': 'svg', 'metadata': {'Date': None}}
      figure.savefig(new, bbox_inches='tight', **plain)
      plt.close(figure)
    new.replace(files[name])
  captions = {f'{name}.svg': caption for name, (_, caption) in drawn.items()}
  text = json.dumps(captions, indent=2, ensure_ascii=False) + '\n'
  metrics.write_text(folder / 'captions.json', text)
  return list(files.values())
