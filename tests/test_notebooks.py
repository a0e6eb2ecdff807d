# SPDX-License-Identifier: Apache-2.0
"""Notebooks: all cells run, and what they were saved with is whole."""

import json
import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
MOST_BYTES = 400_000

each = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)


def code_cells(path: Path) -> list[dict]:
  cells = json.loads(path.read_text(encoding='utf-8'))['cells']
  return [cell for cell in cells if cell['cell_type'] == 'code']


@each
def test_it_runs(path, tmp_path):
  """From any folder, in a process whose settings are its own."""
  script = tmp_path / f'{path.stem}.py'
  cells = (''.join(cell['source']) for cell in code_cells(path))
  script.write_text('\n\n'.join(cells), encoding='utf-8')
  done = subprocess.run(
    [sys.executable, script],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr


@each
def test_it_is_saved_as_it_ran(path):
  """From top to bottom once, without errors and warnings, and small."""
  cells = code_cells(path)
  counts = [cell['execution_count'] for cell in cells]
  assert counts == list(range(1, len(cells) + 1))
  outputs = [output for cell in cells for output in cell['outputs']]
  kinds = {output['output_type'] for output in outputs}
  assert 'error' not in kinds and 'display_data' in kinds
  warned = [o['text'] for o in outputs if o.get('name') == 'stderr']
  assert not warned
  assert path.stat().st_size < MOST_BYTES


@each
def test_its_links_resolve(path):
  cells = json.loads(path.read_text(encoding='utf-8'))['cells']
  text = ''.join(''.join(cell['source']) for cell in cells)
  for target in re.findall(r'\]\((?!https?:)([\w./]+)\)', text):
    assert (path.parent / target).exists(), target
