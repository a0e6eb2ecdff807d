# SPDX-License-Identifier: Apache-2.0
"""Figures that stand on any background, with captions beside them."""

from collections.abc import Callable, Mapping
import json
import os
from pathlib import Path
from typing import Any

from upcycle.results import metrics, svg

STYLE = svg.THEME | {'font.size': 9, 'axes.titlesize': 10}
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
  files = {name: folder / f'{name}.svg' for name in drawn}
  for name, (draw, _) in drawn.items():
    with plt.rc_context(STYLE):
      text = svg.saved(draw(), bbox_inches='tight')
    metrics.write_text(files[name], svg.alone(text))
  captions = {f'{name}.svg': caption for name, (_, caption) in drawn.items()}
  text = json.dumps(captions, indent=2, ensure_ascii=False) + '\n'
  metrics.write_text(folder / 'captions.json', text)
  return list(files.values())
