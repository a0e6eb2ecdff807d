# SPDX-License-Identifier: Apache-2.0
"""Surgery alone: from a checkpoint's file to an upcycled one's."""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from upcycle import (
  checkpoints,
  compatibility,
  depth,
  initialize,
  receipt,
  results,
  surgery,
  transfer,
)
from upcycle import expert_init as inits


def convert(
  model: Any,
  dense: str,
  output: str | Path,
  *,
  format: str | None = None,
  compression: str | None = None,
  expert_init: surgery.ExpertInit = inits.copy,
  depth_tile: depth.Order | None = None,
  seed: int = 0,
  progress: Callable[[str, int], None] | None = None,
) -> dict[str, Any]:
  """Writes the upcycled form of a checkpoint, one parameter at a time.

  Parameters alone: the optimizer's state is expanded where training starts.

  Args:
    model: the sparse model.
    dense: of any format that `checkpoints.read` knows.
    output: a folder; `checkpoint_<step>` is written into it.
    format: 't5x'; 'npz', what vit_jax and big_vision read; or 'orbax' for
      this project's own, which is held in memory. None: 't5x'; for a ViT
      'npz', or 'orbax' if npz cannot say what it computes.
    compression: of T5X's arrays; None is the fastest.
    expert_init: from a dense MLP's parameter to all experts' ones.
    depth_tile: for a deeper model: which layers its layers are made of.
    seed: of what is drawn.
    progress: is told the name and bytes of each parameter written (T5X).

  Returns:
    The receipt, which is also written to output/receipt.json.

  Raises:
    ValueError: the checkpoint does not fit, no such format, or the output
      holds a run or a conversion already.
  """
  if format not in (None, 't5x', 'npz', 'orbax'):
    raise ValueError(f"format is 't5x', 'npz' or 'orbax', not {format!r}.")
  receipt_file = Path(output) / 'receipt.json'
  if receipt_file.exists() or checkpoints.is_run(output):
    raise ValueError(f'{output} holds a run or a conversion: take another.')
  source = checkpoints.read(dense)
  shapes = initialize.param_shapes(model)
  is_vit = 'embedding' in shapes
  facts = compatibility.facts(model.config)
  format = format or _default_format(is_vit, facts)
  if format == ('t5x' if is_vit else 'npz'):
    raise ValueError(f'{format!r} is no format of a {type(model).__name__}.')
  compatibility.check(source, model.config, shapes)
  with compatibility.explained(source, model.config):
    source, rules, _ = transfer.adapt(source, shapes, depth_tile=depth_tile)
    params = initialize.upcycled(source.params, model, seed, expert_init, rules)
  written = {
    **receipt.of_surgery(source, params, expert_init, seed, rules),
    **depth.receipt(source.params, shapes, depth_tile),
  }
  if format == 't5x':
    checkpoints.t5x.write(
      output, params, source.step, compression=compression, progress=progress
    )
  elif format == 'npz':
    checkpoints.vit_npz.write(
      Path(output) / f'checkpoint_{source.step}.npz', params, facts
    )
  else:
    from upcycle.checkpoints import state as run_state

    state = {'params': jax.tree.map(np.asarray, params), 'opt_state': {}}
    with run_state.manager(output, keep=None) as saved:
      run_state.save(saved, source.step, state, {}, {'model': facts})
  results.write_text(receipt_file, json.dumps(written, indent=2))
  return written


def _default_format(is_vit: bool, facts: dict[str, Any]) -> str:
  if not is_vit:
    return 't5x'
  return 'orbax' if checkpoints.vit_npz.unsaid(facts) else 'npz'
