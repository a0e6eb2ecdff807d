# SPDX-License-Identifier: Apache-2.0
r"""Exports a run or a checkpoint to those who serve models; makes it dense.

  python scripts/export_checkpoint.py --gin_file=configs/dense_t5_laptop.gin \
    --checkpoint=runs/t5_laptop/dense --output=... --format=huggingface
  python scripts/export_checkpoint.py \
    --gin_file=configs/upcycle_t5_laptop.gin \
    --checkpoint=runs/t5_laptop/upcycle --output=... --format=huggingface \
    --downcycle=mean

The gin file says what the model is. Parameters pass through one at a time. A
model that becomes dense is measured before and after, on the gin file's
train.train.eval_data, which takes its memory:
--gin.train.train.eval_data=None leaves that out.
"""

import gin_flags


def main() -> None:
  args = gin_flags.parse(
    __doc__,
    complete=False,
    checkpoint=('a run or a checkpoint, of any format that can be read', None),
    output=('the folder to make', None),
    format=(
      "t5x; huggingface, of a dense T5; or safetensors, this project's own, of "
      'any model',
      None,
    ),
    downcycle=(
      'what each MoE layer becomes: one expert, by its number from 0, or the '
      'mean of all',
      '',
    ),
    scale=(
      'what the output of a layer that becomes dense is multiplied by: 1, or '
      'measured, its mean sum of combine weights on a batch',
      '1',
    ),
  )
  import gin
  import jax

  from upcycle import export, losses, partition, train

  if args.scale not in ('1', 'measured'):
    raise ValueError(f'--scale is 1 or measured, not {args.scale}.')
  model = gin_flags.bound(train.train, 'model')
  mesh = gin_flags.bound(train.train, 'make_mesh', partition.make_mesh)
  defaults = {
    'loss': losses.seq2seq,
    'eval_data': None,
    'eval_batches': None,
  }
  data = {
    name: gin_flags.bound(train.train, name, default)
    for name, default in defaults.items()
    if args.downcycle
  }
  choice = args.downcycle
  with jax.set_mesh(mesh(model.num_experts())):
    receipt = export.export(
      model,
      args.checkpoint,
      args.output,
      format=args.format,
      choose=int(choice) if choice.isdecimal() else choice or None,
      scaled=args.scale == 'measured',
      config=gin.operative_config_str,
      progress=lambda name, size: print(f'{size / 1e6:10.1f} MB  {name}'),
      **data,
    )
  for kind in ('sparse', 'dense'):
    if kind in receipt:
      print(f'{kind}: loss {receipt[kind]["loss"]:.4f}')
  counts = receipt['parameters']
  print(f'{counts["source"]:,} parameters became {counts["target"]:,}.')


if __name__ == '__main__':
  gin_flags.run(main)
