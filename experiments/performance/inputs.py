# SPDX-License-Identifier: Apache-2.0
r"""Times the input pipelines of the laptop configs alone, on one core.

  python scripts/prepare_data.py text   # and images: once
  python experiments/performance/inputs.py

Goal: ten times what the dense step takes, so that one core in ten keeps the
others busy. Rows go to inputs.jsonl.
"""

import argparse
import copy
import itertools
import json
import os
from pathlib import Path
import time

import gin
import step
import timing

from upcycle import losses, results

OUT = Path(__file__).with_name('inputs.jsonl')
CASES = 't5_laptop', 'vit_laptop'


def measure(name: str, batches: int) -> dict:
  """Batches as the config gives them, after some that fill its buffers."""
  step.configured(step.CASES[name])
  bound = gin.get_bindings('train.train', resolve_references=False)
  data = iter(copy.deepcopy(bound['train_data']))
  unit, amount = losses.count(next(data))
  for _ in itertools.islice(data, batches // 4):
    pass
  began, cpu = time.perf_counter(), time.process_time()
  for _ in itertools.islice(data, batches):
    pass
  seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
  return {
    'case': name,
    'unit': unit,
    'per_second': amount * batches / seconds,
    'per_cpu_second': amount * batches / cpu,
    'over_step': amount * batches / cpu / step_rate(name),
  }


def step_rate(name: str) -> float:
  """Of the dense step, on all cores: the newest one measured."""
  rows = [
    row
    for row in map(json.loads, step.OUT.read_text().splitlines())
    if (row['case'], row['model']) == (name, 'dense')
  ]
  return rows[-1]['per_second']


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--batches', type=int, default=200)
  args = parser.parse_args()
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  print(f'{"case":12}{"a second":>18}{"over the step":>15}   goal 10')
  for name in CASES:
    row = measure(name, args.batches)
    rate = f'{row["per_cpu_second"]:.0f} {row["unit"]}'
    print(f'{name:12}{rate:>18}{row["over_step"]:>15.1f}')
    results.append(OUT, row | timing.machine())


if __name__ == '__main__':
  main()
