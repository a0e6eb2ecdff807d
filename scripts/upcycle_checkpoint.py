# SPDX-License-Identifier: Apache-2.0
r"""Surgery alone: a dense checkpoint in, an upcycled one out.

  python scripts/upcycle_checkpoint.py --gin_file=configs/upcycle_t5_base.gin \
    --dense=.../checkpoint_1000000 --output=... --format=t5x

The gin file says which layers become sparse and how many experts they get.
Parameters pass through one at a time: a model need not fit into memory.
"""

import gin_flags


def main() -> None:
  args = gin_flags.parse(
    __doc__,
    complete=False,
    dense=('the dense checkpoint, of any format that can be read', None),
    output=('the folder to write into', None),
    format=(
      'if not t5x: npz for a ViT, or where npz cannot say what it computes '
      "orbax, this project's own",
      '',
    ),
    compression=('of T5X arrays: none (fastest), gzip, zstd, blosc', 'none'),
  )
  from upcycle import convert, expert_init, initialize, train

  receipt = convert.convert(
    gin_flags.bound(train.train, 'model'),
    args.dense,
    args.output,
    format=args.format or None,
    compression=None if args.compression == 'none' else args.compression,
    expert_init=gin_flags.bound(
      initialize.InitFrom, 'expert_init', expert_init.copy
    ),
    depth_tile=gin_flags.bound(initialize.InitFrom, 'depth_tile', None),
    seed=gin_flags.bound(train.train, 'seed', 0),
    progress=lambda name, size: print(f'{size / 1e6:10.1f} MB  {name}'),
  )
  counts = receipt['parameters']
  print(f'{counts["source"]:,} parameters became {counts["target"]:,}.')


if __name__ == '__main__':
  gin_flags.run(main)
