# SPDX-License-Identifier: Apache-2.0
"""Our own run state, kept by Orbax in MODEL_DIR/checkpoints.

A checkpoint has three items: `state` (step, params, opt_state), `data` (where
the input iterator stands) and `run` (what else a resumed run goes on from).
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from upcycle import trees
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
  """Saves in the background; a checkpoint appears once it is whole."""
  checkpoints.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      data=ocp.args.JsonSave(data),
      run=ocp.args.JsonSave(run),
    ),
  )


def latest_step(model_dir: str | Path) -> int | None:
  """The newest step saved in a run's folder, if any; writes nothing."""
  folder = Path(model_dir).absolute() / FOLDER
  return max(ocp.utils.checkpoint_steps(folder), default=None)


def restore(model_dir: str | Path, abstract: Any) -> tuple[Any, dict, dict]:
  """(state, data, run) of the newest step.

  Args:
    model_dir: the run's folder.
    abstract: shapes, dtypes and shardings of the state.

  Raises:
    ValueError: the saved state has other parameters; all are listed.
  """
  with manager(model_dir, keep=None) as checkpoints:
    step = checkpoints.latest_step()
    saved = _saved_tree(_folder(model_dir, step))
    what = f'{model_dir}, checkpoint of step {step}'
    trees.check(_by_path(abstract), _by_path(saved), what)
    items = checkpoints.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract),
        data=ocp.args.JsonRestore(),
        run=ocp.args.JsonRestore(),
      ),
    )
  return items.state, items.data, items.run


def read(path: str | Path) -> Checkpoint:
  """The parameters and Adafactor slots of a run's newest checkpoint.

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
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _saved_tree(folder)
  )
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    state = checkpointer.restore(
      folder, ocp.args.PyTreeRestore(restore_args=as_numpy)
    )
  return Checkpoint(
    params=state['params'],
    step=step,
    opt_state=state['opt_state'].get('slots'),
    metadata={'format': 'upcycle', 'path': str(path)},
  )


def _folder(model_dir: str | Path, step: int) -> Path:
  return Path(model_dir).absolute() / FOLDER / str(step) / 'state'


def _saved_tree(folder: Path) -> Any:
  """Shapes and dtypes of a saved state."""
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    return checkpointer.metadata(folder).item_metadata.tree


def _by_path(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }
