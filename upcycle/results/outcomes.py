# SPDX-License-Identifier: Apache-2.0
"""What came of the runs of sweeps: kept beside each, gathered by experiment.

A run that has ended gets a result.json in its MODEL_DIR, made of its metrics
once, and a row in the results.jsonl of every experiment that asks for it. One
that diverged has ended too: its row has an 'error'.
"""

from collections.abc import Iterable, Sequence
import json
from pathlib import Path
from typing import Any

from upcycle.results import metrics, sweep

FILE = 'result.json'


def known(folder: Path) -> dict[str, Any] | None:
  """What came of the run of a MODEL_DIR, None where it has not ended."""
  file = folder / FILE
  return json.loads(file.read_text()) if file.exists() else None


def keep(folder: Path) -> bool:
  """Keeps what came of a run, if it has ended; returns whether it has."""
  if (folder / FILE).exists():
    return True
  found = sweep.result(folder)
  if found is not None:
    metrics.write_text(folder / FILE, json.dumps(found))
  return found is not None


def collect(runs: Iterable[sweep.Run], root: Path) -> None:
  """Keeps what came of these and of what they start from, run elsewhere."""
  for run in runs:
    for one in (*sweep.parents(run), run):
      keep(root / sweep.model_dir(one, root))


def gather(file: Path, runs: Sequence[sweep.Run], root: Path) -> None:
  """Appends rows of results for the runs that have ended and have none yet.

  A row has a run's entries, what came of it, and as `before/FLOPs` those of all
  that it starts from, where these are runs and it is known of them.
  """
  rows = metrics.read(file) if file.exists() else []
  for run in runs:
    found = known(root / sweep.model_dir(run, root))
    if found is not None and not sweep.find(run, rows, root):
      row = sweep.entries(run, root) | found | _before(run, root)
      metrics.append(file, row)


def _before(run: sweep.Run, root: Path) -> dict[str, float]:
  folders = [root / sweep.model_dir(r, root) for r in sweep.parents(run)]
  spent = [(known(folder) or {}).get('FLOPs') for folder in folders]
  return {'before/FLOPs': sum(spent)} if spent and None not in spent else {}
