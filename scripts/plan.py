# SPDX-License-Identifier: Apache-2.0
r"""Says what a training step takes on hardware that one does not have.

  python scripts/plan.py --gin_file=configs/upcycle_t5_xl.gin \
    --topology=v5p:4x4x4 --mesh=data:2,expert:32,model:1
  python scripts/plan.py --gin_file=configs/upcycle_vit_laptop.gin \
    --topology=cpu:8 --json

The step is compiled, not run: parameters, optimizer, memory, operations and
collectives of a device, whether it fits and what to change, and the time at
best by a model that is stated with it. For TPUs it takes libtpu (the extra
`tpu-aot`), for CPUs nothing; no data is read. docs/plan.md has examples.
"""

import argparse
import inspect
import json
import os
import re
import sys

import gin_flags

FORM = 'data:2,expert:32,model:1'


def main() -> None:
  topology = _prepare()
  args = gin_flags.parse(
    __doc__,
    complete=False,
    topology=('chips and how they are joined: v5p:4x4x4, v5e:16x16', None),
    mesh=(f'lengths of axes, as {FORM}; what is not given is chosen', ''),
    batch_size=('rows of a batch, in place of what the config says', ''),
    lengths=('tokens of a row, as inputs:512,targets:114, likewise', ''),
    json=('one JSON object on stdout', ''),
  )
  found = _report(topology, args)
  from upcycle import cost

  found |= {'compile_peak_rss': cost.host_memory()}
  print(json.dumps(found)) if args.json else _show(found)


def _prepare():
  """Reads --topology and sets what JAX reads when it is imported."""
  sys.argv = ['--json=yes' if a == '--json' else a for a in sys.argv]
  early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  early.add_argument('--topology', default='')
  name = early.parse_known_args()[0].topology
  if not name:
    return None  # gin_flags.parse says what is missing

  from upcycle.plan import topologies

  topology = topologies.parse(name)
  os.environ.update(topologies.environment(topology))
  return topology


def _report(topology, args) -> dict:
  from upcycle import losses, partition, train
  from upcycle.plan import report, topologies

  def bound(name, *default):
    return gin_flags.bound(train.train, name, *default)

  model = bound('model')
  shapes = _shapes(model, args)
  lengths = _numbers('mesh', args.mesh, FORM)
  make_mesh = bound('make_mesh', partition.make_mesh)
  devices = topologies.devices(topology)
  mesh = make_mesh(model.num_experts(), devices=devices, **lengths)
  return report.report(
    topology,
    mesh,
    model,
    bound('loss', losses.seq2seq),
    bound('optimizer'),
    shapes,
    microbatches=bound('microbatches', 1),
  )


def _shapes(model, args) -> dict:
  """Of a batch, by the config's data, or by the flags."""
  import gin

  from upcycle import train
  from upcycle.plan import batches

  rows = _numbers('batch_size', args.batch_size, 'ROWS').get('ROWS')
  lengths = _numbers('lengths', args.lengths, 'inputs:512,targets:114')
  bindings = gin.get_bindings(train.train, resolve_references=False)
  data = bindings.get('train_data')
  source = getattr(getattr(data, 'configurable', None), 'wrapped', None)
  if source is None:
    return batches.of_source(str(data), str, model.config, rows, lengths)

  def get(name: str):
    default = inspect.signature(source).parameters[name].default
    given = () if default is inspect.Parameter.empty else (default,)
    with gin.config_scope('/'.join(data.scopes) or None):
      return gin_flags.bound(source, name, *given)

  name = f'{source.__module__.rsplit(".", 1)[-1]}.{source.__name__}'
  return batches.of_source(name, get, model.config, rows, lengths)


def _numbers(flag: str, text: str, form: str) -> dict[str, int]:
  """{'data': 2, ...} of 'data:2,...'; of the form ROWS, {'ROWS': 2} of '2'."""
  names = re.findall(r'[A-Za-z]+', form)
  parts = [x if ':' in x else f'ROWS:{x}' for x in text.split(',') if x]
  pairs = [x.split(':', 1) for x in parts]
  if not all(a in names and re.fullmatch(r'[1-9]\d*', n) for a, n in pairs):
    raise ValueError(f'--{flag}={text} is not like {form}.')
  return {name: int(n) for name, n in pairs}


def _show(found: dict) -> None:
  """The report for reading."""
  from rich import console, table

  screen = console.Console()
  mesh = ', '.join(f'{axis} {n}' for axis, n in found['mesh'].items())
  title = f'{found["topology"]}: {found["devices"]} devices, {mesh}'
  shown = table.Table('', 'a device', 'in all', title=title)
  for row in _rows(found):
    shown.add_row(*row)
  screen.print(shown)
  moved = table.Table('collectives', 'a step', 'bytes a device', 'devices')
  for kind, values in found['collectives'].items():
    numbers = str(values['count']), _bytes(values['bytes'])
    moved.add_row(kind, *numbers, str(values['group']))
  if found['collectives']:
    screen.print(moved)
  screen.print(found['verdict'], highlight=False)
  for what in found['advice']:
    screen.print(f'- {what}', highlight=False)
  notes = found['operations']['note'], *found.get('assumptions', ())
  for note in (*notes, *found.get('chip', {}).get('sources', ())):
    screen.print(f'* {note}', style='dim', highlight=False)


def _rows(found: dict) -> list[tuple[str, str, str]]:
  """What, of a device, of all."""
  memory, work = found['memory'], found['operations']
  rows = [
    (f'{name}, {found[name]["count"]:,}', *map(_bytes, sizes))
    for name in ('parameters', 'optimizer')
    for sizes in [(found[name]['bytes_per_device'], found[name]['bytes'])]
  ]
  rows += [
    (name, _bytes(memory[key]), '')
    for name, key in (
      ('state and batch', 'arguments'),
      ('temporaries', 'temporaries'),
      ('alive at once', 'peak'),
      ('needed', 'needed'),
      ('there is', 'available'),
    )
  ]
  rows += [
    (name, *(_number(n, work[key]) for n in (1, found['devices'])))
    for name, key in (
      ('operations, by the compiler', 'compiler'),
      ('operations of matrix products', 'matmuls'),
    )
  ]
  seconds = found.get('seconds', {})
  rows += [(f'{x}, ms', f'{1e3 * s:.2f}', '') for x, s in seconds.items()]
  return [*rows, ('to compile, s', f'{found["compile_seconds"]:.0f}', '')]


def _number(n: int, each: float | None) -> str:
  return 'not said' if each is None else f'{n * each:.3g}'


def _bytes(n: float | None) -> str:
  return '' if n is None else f'{n / 2**30:,.3f} GiB'


if __name__ == '__main__':
  gin_flags.run(main)
