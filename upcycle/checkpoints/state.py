# SPDX-License-Identifier: Apache-2.0
"""Our own run state, kept by Orbax in MODEL_DIR/checkpoints.

A checkpoint has three items: `state` (step, params, opt_state), `data` (where
the input iterator of each process stands) and `run` (what else a resumed run
goes on from).
"""

from collections.abc import Iterator
import contextlib
import functools
import json
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from upcycle import trees
from upcycle.checkpoints import slots, vit_facts
from upcycle.checkpoints.arrays import Checkpoint

FOLDER = 'checkpoints'


def manager(model_dir: str | Path, keep: int | None = 2) -> Any:
  """Orbax's manager of a run's checkpoints; use it as a context.

  Args:
    model_dir: the run's folder.
    keep: checkpoints kept, the newest ones; None keeps all.
  """
  return ocp.CheckpointManager(
    Path(model_dir).absolute() / FOLDER,
    options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
    item_names=('state', 'data', 'run'),
  )


def save(
  checkpoints: Any, step: int, state: Any, data: dict, run: dict
) -> None:
  """Saves in the background; a checkpoint appears once it is whole.

  Args:
    checkpoints: of `manager`.
    step: of the state.
    state: of which each process writes what it holds.
    data: the state of this process's input iterator.
    run: facts of the run.
  """
  saved = checkpoints.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      data=ocp.args.JsonSave({'processes': _from_processes(data)}),
      run=ocp.args.JsonSave(run),
    ),
  )
  if not saved:
    raise ValueError(
      f'{checkpoints.directory} was not given step {step}: it has a newer one.'
    )


def _from_processes(value: Any) -> list[Any]:
  """What each process has, by its number; anything that JSON can say."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(text)))
  padded = np.pad(text, (0, lengths.max() - len(text)))
  texts = multihost_utils.process_allgather(padded)
  return [
    json.loads(bytes(text[:n])) for text, n in zip(texts, lengths, strict=True)
  ]


def latest_step(model_dir: str | Path) -> int | None:
  """The newest step saved in a run's folder, if any; writes nothing.

  Several processes go by what the first one sees: another may see it later.
  """
  folder = Path(model_dir).absolute() / FOLDER
  step = max(ocp.utils.checkpoint_steps(folder), default=None)
  if jax.process_count() == 1:
    return step
  seen = np.int32(-1 if step is None else step)
  step = int(multihost_utils.broadcast_one_to_all(seen))
  return None if step < 0 else step


def restore(model_dir: str | Path, abstract: Any) -> tuple[Any, dict, dict]:
  """(state, data, run) of the newest step, data being this process's.

  Args:
    model_dir: the run's folder.
    abstract: shapes, dtypes and shardings of the state.

  Raises:
    ValueError: the saved state has other parameters, all of which are listed,
      or was saved by another number of processes.
  """
  with manager(model_dir, keep=None) as checkpoints:
    step = latest_step(model_dir)
    saved = _saved_tree(_folder(model_dir, step))
    what = f'{model_dir}, checkpoint of step {step}'
    trees.check(slots.by_path(abstract), slots.by_path(saved), what)
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract),
      data=ocp.args.JsonRestore(),
      run=ocp.args.JsonRestore(),
    )
    with _whole(_folder(model_dir, step)):
      items = checkpoints.restore(step, args=args)
  data = items.data.get('processes', [items.data])  # 0.1.0 had one process
  if len(data) != jax.process_count():
    raise ValueError(
      f'{what}, is of {len(data)} processes and cannot be gone on with by '
      f'{jax.process_count()}, which would read other examples. Take as many, '
      'or begin a new run from it: InitFrom.path.'
    )
  return items.state, data[jax.process_index()], items.run


def read(path: str | Path) -> Checkpoint:
  """Parameters and optimizer slots of a run's newest checkpoint, lazily.

  Args:
    path: a run's folder, or one step's folder of it.

  Raises:
    ValueError: the run has no checkpoint.
  """
  path = Path(path).absolute()
  run, step = path, None
  if path.parent.name == FOLDER:
    run, step = path.parent.parent, int(path.name)
  step = latest_step(run) if step is None else step
  if step is None:
    raise ValueError(f'{path} is a run without a checkpoint.')
  folder = _folder(run, step)
  saved = _saved_tree(folder)
  lazy = functools.partial(jax.tree.map, functools.partial(_lazy, folder))
  model, _ = vit_facts.facts(trees.flatten(saved['params']))
  run_file = folder.parent / 'run' / 'metadata'
  model |= json.loads(run_file.read_text()).get('model', {})
  return Checkpoint(
    params=lazy(saved['params']),
    step=step,
    opt_state=lazy(slots.get(saved['opt_state'])) or None,
    metadata={'format': 'upcycle', 'path': str(path), 'model': model},
  )


def _lazy(folder: Path, leaf: Any) -> trees.LazyArray:
  """One array of a saved state, which Orbax keeps as zarr in an OCDBT store."""
  store = {'driver': 'ocdbt', 'base': f'file://{folder}', 'path': leaf.name}
  spec = {'driver': 'zarr', 'kvstore': store}

  def read() -> np.ndarray:
    with _whole(folder):
      return ts.open(spec, open=True).result().read().result()

  return trees.LazyArray(tuple(leaf.shape), np.dtype(leaf.dtype), read)


def _folder(model_dir: str | Path, step: int) -> Path:
  return Path(model_dir).absolute() / FOLDER / str(step) / 'state'


def _saved_tree(folder: Path) -> Any:
  """Shapes and dtypes of a saved state."""
  with (
    _whole(folder),
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
  ):
    return checkpointer.metadata(folder).item_metadata.tree


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[None]:
  """Says of what Orbax cannot read that it is damaged, and what to do."""
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError):
    raise  # too large for these devices, or another process is gone
  except Exception as error:  # Orbax raises all kinds of errors.
    raise ValueError(
      f'The checkpoint {folder.parent} is damaged '
      f'({type(error).__name__}: {str(error)[:200]}). Remove that folder: a '
      'run goes on from the checkpoint before it, if there is one.'
    ) from error
