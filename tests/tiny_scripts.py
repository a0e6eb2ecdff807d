# SPDX-License-Identifier: Apache-2.0
"""A script called as a user calls it, but within this process."""

from pathlib import Path
import runpy
import sys

import gin

ROOT = Path(__file__).parent.parent


def main(monkeypatch, script: str, *args) -> str | int | None:
  """Runs scripts/SCRIPT; what it exits with: its error, or None."""
  monkeypatch.setattr(sys, 'argv', [script, *map(str, args)])
  monkeypatch.syspath_prepend(ROOT / 'scripts')
  try:
    runpy.run_path(str(ROOT / 'scripts' / script), run_name='__main__')
  except SystemExit as stop:
    return stop.code
  finally:
    gin.clear_config()
  return None


def flags(files, bindings) -> list[str]:
  """Flags of gin files, and of bindings as gin files have them."""
  return [
    *(f'--gin_file={file}' for file in files),
    *(f'--gin.{line.replace(" = ", "=", 1)}' for line in bindings),
  ]
