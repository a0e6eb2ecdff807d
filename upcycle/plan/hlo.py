# SPDX-License-Identifier: Apache-2.0
"""Collectives, read off the text of a compiled program.

An instruction stands in a computation, and counts as often as that is run: a
loop's body as often as the loop turns, where the compiler says how often.
"""

from collections.abc import Iterator
import math
import re
from typing import NamedTuple

import numpy as np

KINDS = (
  'all-to-all',
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'collective-permute',
  'ragged-all-to-all',
  'collective-broadcast',
  'send',  # between slices of TPUs
)
_SHAPE = re.compile(r'\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]')
_INSTRUCTION = re.compile(
  rf'^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({"|".join(KINDS)})(-start)?\('
)
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) (?:\(.*)?\{\s*$')
_CALL = re.compile(
  r'\b(body|condition|calls|to_apply|branch_computations|true_computation|'
  r'false_computation)=(\{[^}]*\}|%?[\w.-]+)'
)
_TRIPS = re.compile(r'"?known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')


class Collective(NamedTuple):
  """One instruction of a device's program.

  Attributes:
    kind: of KINDS.
    bytes: of what it works on, on one device: the larger of what goes in and
      what comes out.
    groups: of partitions that take part together.
    times: that it runs in a step.
  """

  kind: str
  bytes: int
  groups: tuple[tuple[int, ...], ...]
  times: int

  @property
  def group(self) -> tuple[int, ...]:
    """The first group, like which the others are."""
    return self.groups[0]


def itemsize(dtype: str) -> float:
  """Bytes of a number of an HLO type, 0.5 for 4 bits."""
  if dtype == 'pred':
    return 1
  bits = re.search(r'\d+', dtype)
  return int(bits[0]) / 8 if bits else 0


def shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
  """All arrays of a type, in order: (dtype, shape); tuples are flattened."""
  return [
    (dtype, tuple(int(n) for n in sizes.split(',') if n))
    for dtype, sizes in _SHAPE.findall(text)
  ]


def _nbytes(arrays: list[tuple[str, tuple[int, ...]]]) -> int:
  return math.ceil(sum(itemsize(t) * math.prod(s) for t, s in arrays))


def payload(kind: str, type_: str, *, start: bool, group: int) -> int:
  """Bytes of what a collective works on, on one device.

  Args:
    kind: of KINDS.
    type_: of the instruction. That of a `-start` holds operands, then results,
      then scalars of its own; but all-reduce-start's holds its results alone,
      and a send's no results.
    start: whether it is a `-start`.
    group: devices that take part together.
  """
  arrays = shapes(type_)
  own = kind == 'send' or (start and kind != 'all-reduce')
  if own:
    arrays = [x for x in arrays if x[1] or x[0] not in ('u32', 's32')]
  if own and kind != 'send':
    half = len(arrays) // 2
    return max(_nbytes(arrays[:half]), _nbytes(arrays[half:]))
  return _nbytes(arrays) * (group if kind == 'reduce-scatter' else 1)


def groups(line: str, partitions: int) -> list[tuple[int, ...]]:
  """Who takes part together: lists of partitions, as an instruction says.

  Args:
    line: with replica_groups in one of three forms, or source_target_pairs:
      {{0,1},{2,3}}; [2,2]<=[4], perhaps with a transposition T(1,0); or
      mesh['a'=2,'b'=2] {'b'}, the axes that a group spans.
    partitions: of the program, where it says nothing.
  """
  listed = re.search(
    r'(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)+)\}', line
  )
  if listed:
    return [_ints(x) for x in re.findall(r'\{([\d,]+)\}', listed[1])]
  iota = re.search(rf'replica_groups=\[([\d,]+)\]<={_IOTA}', line)
  if iota:
    to, *ids = iota.groups()
    return _rows(_iota(*ids).reshape(_ints(to)[0], -1))
  mesh = re.search(
    r'replica_groups=mesh\[([^]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}',
    line,
  )
  if mesh:
    return _on_mesh(*mesh.groups())
  return [tuple(range(partitions))]


def _on_mesh(axes: str, ids: str | None, chosen: str) -> list[tuple[int, ...]]:
  """Groups along axes of a mesh: 'b', or its part 'b':(before)size."""
  sizes = {x: int(n) for x, n in re.findall(r"'?([\w.-]+)'?=(\d+)", axes)}
  grid = np.arange(math.prod(sizes.values()))
  if ids:
    iota = re.fullmatch(_IOTA, ids)
    grid = _iota(*iota.groups()) if iota else np.array(_ints(ids))
  shape, spans = [], []
  parts = re.findall(r"'?([\w.-]+)'?(?::\((\d+)\)(\d+))?(?:,|$)", chosen)
  for axis, size in sizes.items():
    cuts = {int(b or 1): int(n or size) for x, b, n in parts if x == axis}
    done = 1
    for before, length in sorted(cuts.items()):
      shape += [before // done, length]
      spans += [len(shape) - 1]
      done = before * length
    shape.append(size // done)
  rest = [i for i in range(len(shape)) if i not in spans]
  grid = grid.reshape(shape).transpose(*rest, *spans)
  return _rows(grid.reshape(-1, math.prod(shape[i] for i in spans)))


_IOTA = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'


def _iota(of: str, order: str | None) -> np.ndarray:
  """0, 1, ... in the shape `of`, transposed, flat."""
  ids = np.arange(math.prod(_ints(of))).reshape(_ints(of))
  return (ids.transpose(_ints(order)) if order else ids).reshape(-1)


def _ints(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in text.split(',') if n)


def _rows(table: np.ndarray) -> list[tuple[int, ...]]:
  return [tuple(row) for row in table.tolist()]


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
  """The entry's name, and the lines of every computation."""
  entry, name, found = '', '', {}
  for line in text.splitlines():
    head = _COMPUTATION.match(line)
    if head and not line.startswith('HloModule'):
      name = head[2]
      entry = name if head[1] else entry
      found[name] = []
    elif name:
      found[name].append(line)
  return entry, found


def _calls(line: str, found: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
  """Computations that an instruction runs, and how often."""
  called = dict(_CALL.findall(line))
  condition = found.get(called.get('condition', '').lstrip('%'), [])
  for what, names in called.items():
    often = _turns(line, condition) if what in ('body', 'condition') else 1
    for name in re.findall(r'[\w.-]+', names):
      yield name, often


def _turns(line: str, condition: list[str]) -> int:
  """Of a loop: as the compiler says, or counts to; 1 if that is not seen.

  JAX's loops of a known length count from 0 while less than a constant.
  """
  known = _TRIPS.search(line)
  if known:
    return int(known[1])
  text = '\n'.join(condition)
  limits = re.findall(r' constant\((\d+)\)', text)
  return int(limits[0]) if len(limits) == 1 and 'direction=LT' in text else 1


def _times(entry: str, found: dict[str, list[str]]) -> dict[str, int]:
  """How often each computation is run in a step."""
  callers: dict[str, list[tuple[str, int]]] = {name: [] for name in found}
  for name, lines in found.items():
    for line in lines:
      if '=' in line:
        for called, often in _calls(line, found):
          callers.setdefault(called, []).append((name, often))
  known = {entry: 1}

  def times(name: str) -> int:
    if name not in known:
      known[name] = sum(often * times(by) for by, often in callers[name])
    return known[name]

  return {name: times(name) for name in found}


def collectives(text: str, partitions: int) -> list[Collective]:
  """All collectives of a compiled program.

  An asynchronous one counts once, by its `-start`, or by the computation that
  an `async-start` calls.

  Args:
    text: of `compiled.as_text()`.
    partitions: devices of the program.
  """
  entry, found = _computations(text)
  often, result = _times(entry, found), []
  for name, lines in found.items():
    for line in lines:
      made = _INSTRUCTION.match(line)
      if made:
        kind, start = made[2], bool(made[3])
        together = tuple(groups(line, partitions))
        size = payload(kind, made[1], start=start, group=len(together[0]))
        result.append(Collective(kind, size, together, often[name]))
  return result
