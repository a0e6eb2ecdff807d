# SPDX-License-Identifier: Apache-2.0
r"""Evaluates a checkpoint of any format, without training.

  python scripts/evaluate.py --gin_file=configs/upcycle_vit_laptop.gin \
    --gin.MODEL_DIR="'runs/vit_laptop/upcycle'"
  python scripts/evaluate.py --gin_file=configs/dense_vit_laptop.gin \
    --gin_file=configs/fewshot_vit_laptop.gin \
    --checkpoint=runs/vit_laptop/pretrain --output=pretrain.jsonl \
    --weights=int8

What is evaluated is what the config evaluates while it trains: the loss on
train.train.eval_data, and train.train.evaluations by name; None leaves one out,
as in --gin.train.train.eval_data=None. Each result is a line of JSON in the
output file and a row of the table, which is also written in Markdown beside it.
On several hosts the command is given on each of them, with --distributed; the
first one writes.
"""

from pathlib import Path

import gin_flags


def main() -> None:
  args = gin_flags.parse(
    __doc__,
    complete=False,
    checkpoint=('what to evaluate; the run in MODEL_DIR if not given', ''),
    output=(
      'a file to append to; MODEL_DIR/evaluation.jsonl of a run if not given',
      '',
    ),
    weights=(
      'what kernels and embeddings are kept in: float32, bfloat16 or int8',
      'float32',
    ),
    distributed=gin_flags.DISTRIBUTED,
  )
  gin_flags.join(args.distributed)
  import jax
  from rich import console, progress

  from upcycle import (
    checkpoints,
    evaluate_checkpoint,
    losses,
    partition,
    results,
    train,
  )
  from upcycle.results import tables

  def bound(name, *default):
    return gin_flags.bound(train.train, name, *default)

  checkpoint = args.checkpoint or bound('model_dir')
  output = args.output or _in_run(bound('model_dir'), args.checkpoint)
  source, model = checkpoints.read(checkpoint), bound('model')
  mesh = bound('make_mesh', partition.make_mesh)(model.num_experts())
  screen, first = console.Console(), jax.process_index() == 0
  shown = []
  columns = (
    progress.SpinnerColumn(),
    '{task.description}',
    progress.TimeElapsedColumn(),
  )
  with (
    jax.set_mesh(mesh),
    progress.Progress(
      *columns, console=screen, transient=True, disable=not first
    ) as bar,
  ):
    task = bar.add_task('')
    for name, values in evaluate_checkpoint.evaluate_checkpoint(
      source,
      model,
      bound('loss', losses.seq2seq),
      eval_data=bound('eval_data', None),
      eval_batches=bound('eval_batches', None),
      evaluations=bound('evaluations', None),
      weights=args.weights,
      progress=lambda what: bar.update(task, description=what),
    ):
      row = {
        'checkpoint': str(checkpoint),
        'step': source.step,
        'weights': args.weights,
        'split': name,
      }
      if first:
        results.append(output, row | values)
      shown += [
        {'of': name, 'what': metric, str(checkpoint): _shown(value)}
        for metric, value in values.items()
      ]
  if not first:
    return
  screen.print(tables.rich_table(shown))
  table = Path(f'{output}.md')
  results.write_text(table, tables.markdown(shown, []))
  print(f'Written to {output}, this table to {table}.')


def _shown(value: float) -> str:
  return f'{value:,}' if isinstance(value, int) else f'{value:.4f}'


def _in_run(model_dir: str, checkpoint: str) -> Path:
  """The file of a run; training would refuse a folder that is made here."""
  from upcycle import results

  if checkpoint and not (Path(model_dir) / results.CONFIG).exists():
    raise ValueError(
      f'There is no run in {model_dir} to write results of {checkpoint} to: '
      'give a file by --output.'
    )
  return Path(model_dir) / 'evaluation.jsonl'


if __name__ == '__main__':
  gin_flags.run(main)
