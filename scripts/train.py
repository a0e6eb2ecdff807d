# SPDX-License-Identifier: Apache-2.0
r"""Trains a model: upcycled from a dense checkpoint, dense, or from scratch.

  python scripts/train.py --gin_file=configs/upcycle_t5_base.gin \
    --gin.DENSE_CHECKPOINT="'.../checkpoint_1000000'" --gin.MODEL_DIR="'...'"

It uses all devices. On several hosts the command is given on each of them, with
--distributed. The same command goes on with a run that was stopped. The configs
whose names begin with upcycle_, dense_ and scratch_moe_ differ in what they
start from.
"""

import os
from pathlib import Path

import gin_flags


def main() -> None:
  # Before JAX is imported, which reads it: programs are compiled once.
  cache = os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{cache}/upcycle')
  # All of them: the many small ones of a start take seconds together.
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  args = gin_flags.parse(__doc__, distributed=gin_flags.DISTRIBUTED)
  gin_flags.join(args.distributed)
  import gin

  from upcycle import train

  gin.get_configurable(train.train)(config=gin.operative_config_str)


if __name__ == '__main__':
  gin_flags.run(main)
