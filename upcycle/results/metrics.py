# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl and TensorBoard: written by a run, read by everything else.

One JSON object a line: {"step": 10, "split": "train", "loss": 3.2, ...}. An
array, such as the load of a layer's experts, is a list. JSON has no NaN and no
infinity: null stands for them. `seconds`, `evaluation_seconds` and
`*_per_second` are wall-clock time; all else is the same when a run was killed
and resumed, but for split 'cost', which also names the machine.
"""

from collections.abc import Iterable, Mapping
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

FILE = 'metrics.jsonl'
Row = Mapping[str, Any]


class Writer:
  """Writes metrics of a run into its folder; a context manager.

  Args:
    model_dir: the run's folder; it is made if it is not there.
    resume_step: the step the run goes on from. What was written after it by
      the run that was killed is dropped, with -1 everything. None appends.
    enabled: False in all processes but the first.
  """

  def __init__(
    self,
    model_dir: str | os.PathLike,
    *,
    resume_step: int | None = None,
    enabled: bool = True,
  ):
    self._folder = Path(model_dir)
    self._resume_step = resume_step
    self._enabled = enabled

  def __enter__(self) -> 'Writer':
    if self._enabled:
      import tensorboardX

      self._folder.mkdir(parents=True, exist_ok=True)
      purge = self._resume_step
      if purge is not None:
        purge += 1
        _drop_from(self._folder / FILE, purge)
      self._file = (self._folder / FILE).open('a')
      self._board = tensorboardX.SummaryWriter(
        str(self._folder), purge_step=purge
      )
    return self

  def __exit__(self, *_) -> None:
    if self._enabled:
      self.sync()
      self._file.close()
      self._board.close()

  def sync(self) -> None:
    """Has all lines on the disk, or in the bucket, before a checkpoint is."""
    if self._enabled:
      os.fsync(self._file.fileno())

  def write(self, step: int, split: str, values: Row) -> None:
    """Appends a line, and TensorBoard's `split/name` for every number.

    Arrays of an equal last name, such as 'encoder/layers_1/mlp/load', become
    one heat map there: a row for each, in colours relative to its mean.
    """
    if not self._enabled:
      return
    row = {name: _plain(value) for name, value in values.items()}
    line = json.dumps({'step': step, 'split': split, **row}, allow_nan=False)
    self._file.write(line + '\n')
    self._file.flush()
    arrays: dict[str, list] = {}
    for name, value in row.items():
      if isinstance(value, list):
        arrays.setdefault(name.rsplit('/', 1)[-1], []).append(value)
      elif isinstance(value, int | float):
        self._board.add_scalar(f'{split}/{name}', value, step)
    for name, rows in arrays.items():
      image = heat_map(rows)
      self._board.add_image(f'{split}/{name}', image, step, dataformats='HWC')

  def write_once(self, step: int, split: str, values: Row) -> None:
    """`write`, unless the split's last line has all these values already."""
    if self._enabled:
      last = [{}, *read(self._folder, split)][-1]
      if not values.items() <= last.items():
        self.write(step, split, values)


def append(path: str | os.PathLike, row: Row) -> None:
  """Appends a row of numbers and words to a file that `read` reads."""
  numbers = {k: v for k, v in row.items() if isinstance(v, float)}
  row = {**row, **{k: _plain(v) for k, v in numbers.items()}}
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  with Path(path).open('a') as file:
    file.write(json.dumps(row, allow_nan=False) + '\n')


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a file as a whole or not at all; leaves an equal one alone."""
  path = Path(path)
  if path.exists() and path.read_text() == text:
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_name(f'.{path.name}.new')
  new.write_text(text)
  new.replace(path)


def _plain(value: Any) -> float | int | str | list | None:
  """Words, numbers, lists as JSON has them; float32 in its shortest digits."""
  if isinstance(value, str):
    return value
  array = np.asarray(value)
  if array.ndim:
    return [_plain(x) for x in array]
  if np.issubdtype(array.dtype, np.integer):
    return int(array)
  if not np.isfinite(array):
    return None
  if array.dtype == np.float64:
    return float(array)
  return float(str(array.astype(np.float32)))


def _drop_from(file: Path, step: int) -> None:
  """Drops lines from this step on, and one that was cut off, all at once."""
  if not file.exists():
    return
  lines = file.read_text().splitlines(keepends=True)
  kept = [x for x in lines if x.endswith('\n') and json.loads(x)['step'] < step]
  new = file.with_suffix('.tmp')
  new.write_text(''.join(kept))
  new.replace(file)


def heat_map(
  rows: Iterable[Iterable[float | None]], size: int = 12
) -> np.ndarray:
  """Rows of numbers as pixels [H, W, 3] uint8, white at the mean of a row.

  Blue is a quarter of the mean or less, red four times it or more. Shorter
  rows are stretched to the width of the longest.
  """
  rows = [np.nan_to_num(np.ravel(row).astype(np.float64)) for row in rows]
  width = size * max(len(row) for row in rows)
  stretched = np.stack([r[np.arange(width) * len(r) // width] for r in rows])
  mean = np.maximum(stretched.mean(1, keepdims=True), 1e-30)
  heat = np.log2(np.clip(stretched / mean, 0.25, 4))[..., None] / 2
  red, blue = np.array([178, 24, 43]), np.array([33, 102, 172])
  pixels = 255 + np.abs(heat) * (np.where(heat > 0, red, blue) - 255)
  return np.repeat(pixels.astype(np.uint8), size, 0)


def read(path: str | os.PathLike, split: str | None = None) -> list[dict]:
  """The rows of a run, in the order they were written.

  Args:
    path: a run's folder, or a file such as its metrics.jsonl.
    split: only the rows of this split.

  Returns:
    A dict for each line, with NaN where the file has null. A last line that
    was cut off is left out.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: lines that are no JSON; all are named.
  """
  file = Path(path)
  file = file / FILE if file.is_dir() else file
  rows, wrong = [], []
  lines = file.read_text().splitlines(keepends=True)
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      if line.endswith('\n'):
        wrong.append(number)
      continue
    if split is None or row.get('split') == split:
      rows.append({k: np.nan if v is None else v for k, v in row.items()})
  if wrong:
    raise ValueError(f'{file}: lines {wrong} are no JSON. Mend or drop them.')
  return rows


def curve(
  rows: Iterable[Row], name: str, x: str = 'step'
) -> tuple[np.ndarray, np.ndarray]:
  """(x [N], values [N]) of the rows that have both."""
  found = [(row[x], row[name]) for row in rows if x in row and name in row]
  pairs = np.array(found, np.float64).reshape(-1, 2)
  return pairs[:, 0], pairs[:, 1]


def interval(
  values: Any, level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[np.ndarray | np.float64, np.ndarray | np.float64]:
  """Bootstrap confidence interval of the mean over the first axis.

  The percentile bootstrap (Efron, 1979): means of `samples` redraws of the N
  runs; the same interval for the same seed.

  Args:
    values: [N, ...], one entry a run.
    level: share of redraws inside.
    samples: number of redraws.
    seed: of the redraws.

  Returns:
    (low, high), each [...].
  """
  values = np.asarray(values, np.float64)
  runs = len(values)
  # How often each run is drawn: the means are one matmul, nothing is gathered.
  counts = np.random.default_rng(seed).multinomial(
    runs, np.full(runs, 1 / runs), size=samples
  )
  means = np.tensordot(counts / runs, values, 1)
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
  return low, high
