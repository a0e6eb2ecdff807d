# SPDX-License-Identifier: Apache-2.0
r"""Shows what a checkpoint holds, or how two of them differ.

A path is a T5X folder (or the folder of several: the newest is shown), local
or gs://; a Hugging Face folder or safetensors file; an .npz file of vit_jax,
big_vision or V-MoE; or a run's MODEL_DIR.
Names are those of this project whatever the format, so that any two can be
compared. Nothing but names and shapes is read unless --values is given.

  python scripts/inspect_checkpoint.py checkpoint_1000000
  python scripts/inspect_checkpoint.py checkpoint_1000000 --values | grep router
  python scripts/inspect_checkpoint.py dense/checkpoint_1000 \
    --compare sparse/checkpoint_1000
  python scripts/inspect_checkpoint.py t5-v1_1-small \
    --compare checkpoint_1000000 --values

Exit code: 0, also if two are equal; 1 if they differ; 2 on an error.
"""

import argparse
import sys

from upcycle import checkpoints
from upcycle.checkpoints import describe


def main() -> int:
  args = _parse()
  try:
    checkpoint = checkpoints.read(args.path)
    if args.compare is None:
      print(describe.describe(checkpoint, values=args.values))
      return 0
    return _compare(checkpoint, checkpoints.read(args.compare), args.values)
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2


def _compare(
  here: checkpoints.Checkpoint, there: checkpoints.Checkpoint, values: bool
) -> int:
  lines = describe.differences(here, there, values=values)
  for label, one in (('here', here), ('there', there)):
    print(f'{label}: {one.metadata["path"]}, step {one.step}')
  print('\n'.join(lines))
  what = 'names, shapes, dtypes' + (', values' if values else '')
  print(f'{len(lines)} differences' if lines else f'equal in {what}')
  return 1 if lines else 0


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('path', metavar='PATH')
  parser.add_argument(
    '--compare', metavar='OTHER', help='lists the differences to OTHER'
  )
  parser.add_argument(
    '--values',
    action='store_true',
    help='reads the arrays, one at a time: statistics, or with --compare the '
    'largest absolute difference of each',
  )
  return parser.parse_args()


if __name__ == '__main__':
  sys.exit(main())
