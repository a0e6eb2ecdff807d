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
    dense='the dense checkpoint, of any format that can be read',
    output='the folder to write checkpoint_<step> into',
    format="'t5x' or 'orbax' (this project's own)",
  )
  from upcycle import initialize, train

  receipt = initialize.convert(
    gin_flags.bound(train.train, 'model'),
    args.dense,
    args.output,
    format=args.format,
    progress=lambda name, size: print(f'{size / 1e6:10.1f} MB  {name}'),
  )
  counts = receipt['parameters']
  print(f'{counts["source"]:,} parameters became {counts["target"]:,}.')


if __name__ == '__main__':
  gin_flags.run(main)
