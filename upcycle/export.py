# SPDX-License-Identifier: Apache-2.0
"""Export: a checkpoint in a format of those who serve models.

As it is, or made dense before, for those who serve no mixture of experts.
"""

from collections.abc import Callable, Iterable
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from upcycle import (
  checkpoints,
  compatibility,
  downcycle,
  evaluate_checkpoint,
  initialize,
  partition,
  receipt,
  results,
  surgery,
  trees,
)
from upcycle.checkpoints import folders, hf_t5

# Of a MoeConfig, what counts in training alone or changes no number.
_NOT_SERVED = 'aux_weights', 'exchange', 'expert_dropout', 'router_std'


def export(
  model: Any,
  checkpoint: str,
  output: str | Path,
  *,
  format: str,
  choose: downcycle.Choice | None = None,
  scaled: bool = False,
  loss: Callable[..., Any] | None = None,
  eval_data: Iterable[Any] | None = None,
  eval_batches: int | None = None,
  config: Callable[[], str] | None = None,
  progress: Callable[[str, int], None] | None = None,
) -> dict[str, Any]:
  """Writes a checkpoint's parameters, one at a time.

  Args:
    model: whose parameters they are.
    checkpoint: of any format that `checkpoints.read` knows.
    output: a folder that is made.
    format: one of `FORMATS`: 't5x', which writes `checkpoint_<step>` into the
      folder; 'huggingface', of a dense T5; 'safetensors', of any model.
    choose: makes MoE layers dense: an expert's number, or 'mean' of all.
    scaled: multiplies their outputs by their mean scales on the first batch.
    loss: see `losses`; with eval_data.
    eval_data: batches on which the sparse and the dense model are measured,
      which takes their memory; None: they are not.
    eval_batches: only the first.
    config: what is written to output/config.gin.
    progress: is told the name and bytes of each parameter written.

  Returns:
    The receipt, which is also written to output/receipt.json.

  Raises:
    FileExistsError: the output is there.
    ValueError: the checkpoint is not the model's, the format cannot hold it, or
      too little room on the disk; all before anything is measured.
  """
  target = folders.local(output)
  if scaled and (choose is None or eval_data is None):
    raise ValueError(
      'Scales are measured for layers that become dense: give choose '
      '(--downcycle) and data (train.train.eval_data).'
    )
  written = model if choose is None else model.dense()
  _check_format(format, written)
  source = checkpoints.read(checkpoint)
  evaluate_checkpoint.check(source, model)
  exported, rules, said = source, surgery.RULES, {}
  if choose is not None:
    make_dense = functools.partial(_dense, source, written, choose)
    exported, rules = make_dense(None), downcycle.RULES
  # With room for all, and nothing left behind if one of them fails.
  with folders.writing(target, _nbytes(exported)) as folder:
    if choose is not None:
      scales = _scales(source, model, loss, eval_data) if scaled else None
      exported = make_dense(scales)
      said = {'downcycle': choose, 'scales': scales}
      if eval_data is not None:
        measure = functools.partial(_measure, loss, eval_data, eval_batches)
        said['sparse'] = measure(source, model)
        said['dense'] = measure(exported, written)
    kept = downcycle.kept(source.params, exported.params)
    said = {
      'source': {**source.metadata, 'step': source.step},
      **said,
      **surgery.receipt(kept, exported.params, rules),
    }
    FORMATS[format](folder, exported, written, progress)
    results.write_text(folder / 'receipt.json', json.dumps(said, indent=2))
    if config:
      results.write_text(folder / results.CONFIG, config())
  return said


def about(model: Any) -> dict[str, Any]:
  """What config.json says of a model: its kind, its sizes, its MoE layers."""
  return {
    'model_type': _kind(model),
    'model': compatibility.architecture(model.config),
    'moe': {
      path: {
        field.name: _plain(getattr(layer, field.name))
        for field in dataclasses.fields(layer)
        if field.name not in _NOT_SERVED
      }
      for path, layer in model.moe_layers().items()
    },
  }


def _plain(value: Any) -> Any:
  """A router in words; what gin has bound to it is in its config alone."""
  if not callable(value):
    return value
  if isinstance(value, functools.partial):
    bound = ', '.join(f'{k}={v!r}' for k, v in value.keywords.items())
    return f'{_plain(value.func)}({bound})'
  return getattr(value, '__name__', repr(value))


def _kind(model: Any) -> str:
  return type(model).__name__.lower()


def _t5x(output, source, model, progress) -> None:
  del model
  checkpoints.t5x.write(output, source.params, source.step, progress=progress)


def _huggingface(output, source, model, progress) -> None:
  checkpoints.huggingface.write(
    output,
    source.params,
    compatibility.architecture(model.config),
    progress=progress,
  )


def _safetensors(output, source, model, progress) -> None:
  checkpoints.exported.write(
    output, source.params, source.step, about(model), progress=progress
  )


FORMATS = {
  't5x': _t5x,
  'huggingface': _huggingface,
  'safetensors': _safetensors,
}


def _check_format(format: str, model: Any) -> None:
  if format not in FORMATS:
    raise ValueError(f'The format is {" or ".join(FORMATS)}, not {format!r}.')
  if format == 'safetensors':
    return
  if _kind(model) != 't5':
    raise ValueError(
      f'{format!r} is written of a T5: export a {type(model).__name__} with '
      'the format safetensors, or by scripts/upcycle_checkpoint.py as npz.'
    )
  if format != 'huggingface':
    return
  hf_t5.config_of(compatibility.architecture(model.config), 'This model')
  if model.moe_layers():
    raise ValueError(
      'Hugging Face has no such model with experts in '
      f'{", ".join(model.moe_layers())}: take the format safetensors, or make '
      'it dense by downcycling (--downcycle=mean).'
    )


def _nbytes(source) -> int:
  return sum(x.nbytes for x in trees.flatten(source.params).values())


def _dense(source, dense: Any, choose, scales) -> checkpoints.Checkpoint:
  shapes = initialize.param_shapes(dense)
  params = downcycle.downcycle(
    source.params, shapes, choose=choose, scales=scales
  )
  return dataclasses.replace(source, params=params)


def _scales(source, model: Any, loss, eval_data) -> dict[str, float]:
  params = evaluate_checkpoint.parameters(source, model)
  batch = partition.put_batch(next(iter(eval_data)))
  return receipt.scales(model, loss, params, batch)


def _measure(loss, eval_data, eval_batches, source, model) -> dict[str, float]:
  found = evaluate_checkpoint.evaluate_checkpoint(
    source, model, loss, eval_data=eval_data, eval_batches=eval_batches
  )
  return dict(found)['eval']
