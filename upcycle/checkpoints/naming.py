# SPDX-License-Identifier: Apache-2.0
"""Names of a foreign format become ours, each once."""

from collections.abc import Iterable, Mapping
import re

from upcycle import trees
from upcycle.checkpoints.arrays import LazyArray

# The template of a rule for arrays that no model of ours uses.
UNUSED = ''


def rename(
  leaves: Mapping[str, LazyArray], rules: trees.Rules
) -> tuple[dict[str, LazyArray], list[str]]:
  """The leaves under the names that the rules give them.

  Returns:
    The leaves, and a line for each one that no rule knows or whose name
    another one has got.
  """
  rules = tuple(rules)
  sources, problems = {}, []
  for name in leaves:
    path = trees.rename(name, rules)
    if path is None:
      problems.append(f'unknown: {name}')
    elif path in sources:
      problems.append(f'twice: {sources[path]} and {name} are both {path}')
    elif path != UNUSED:
      sources[path] = name
  return {path: leaves[name] for path, name in sources.items()}, sorted(
    problems
  )


def rename_all(
  leaves: Mapping[str, LazyArray], rules: trees.Rules, where: str
) -> dict[str, LazyArray]:
  """As `rename`; raises one ValueError that lists all problems."""
  params, problems = rename(leaves, rules)
  if problems:
    raise ValueError(
      f'{where} holds {len(problems)} tensors that have no place in its '
      'model:\n  ' + '\n  '.join(problems)
    )
  return params


def rules(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
  """Rules from pairs of names, in which # stands for the number of a layer.

  The other way round, the pairs lead back.
  """
  return tuple(
    (re.escape(name).replace(r'\#', r'(\d+)'), target.replace('#', r'\1'))
    for name, target in pairs
  )
