# SPDX-License-Identifier: Apache-2.0
"""Surgery: the parameters of a sparse model from those of a dense one.

What a target parameter is made of is a table of rules on its path. Surgery is
strict both ways: a target without a source, a source without a target, another
shape or a dtype that would lose digits are errors that list every offender.
"""

import collections
from collections.abc import Callable, Mapping
import dataclasses
import functools
import hashlib
import re
from typing import Any

import jax
import numpy as np

from upcycle import depth, trees
from upcycle import expert_init as inits

ExpertInit = Callable[[jax.Array, str, Any, int], Any]

# (regex of the target, kind, template of the source). The first rule that
# matches and whose source exists counts, so a tree that is sparse already, or
# stays dense, is copied. The groups of the rule of an MLP's parameter are the
# layer and the parameter's name in it. A template may also be a function from
# the match to the source, as `depth.rules` makes them.
Template = str | Callable[[re.Match], str] | None
Rules = tuple[tuple[str, str, Template], ...]
RULES: Rules = (
  (r'(.*)', 'copied', r'\1'),
  (r'(.*/mlp)/expert/(.*)', 'expert', r'\1/\2'),
  (r'(.*)/Moe/Mlp/(.*)', 'expert', r'\1/MlpBlock_0/\2'),
  (r'.*/mlp/router/.*', 'fresh', None),
  (r'.*/Moe/Router/.*', 'fresh', None),
)


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a target parameter is made of.

  Attributes:
    kind: 'copied', 'expert' (a source with a new leading expert axis),
      'merged' (one without it any more, see `downcycle`) or 'fresh'.
    source: path of the source's parameter; None if fresh.
    layer: path of the MLP that an 'expert' or 'merged' one belongs to.
    name: path of such a parameter within its MLP.
  """

  kind: str
  source: str | None = None
  layer: str = ''
  name: str = ''


def origins(
  source: trees.Tree, target: trees.Tree, rules: Rules = RULES
) -> dict[str, Origin]:
  """What each parameter of `target` is made of, by path.

  Args:
    source: its parameters; only shapes and dtypes are looked at.
    target: its parameters, or their shapes.
    rules: see `RULES`.

  Raises:
    ValueError: a target has no source, a source is used nowhere, a shape does
      not fit, or a dtype cannot be cast without loss; all are listed.
  """
  have, want = trees.flatten(source), trees.flatten(target)
  found = {path: _origin(path, have, rules) for path in want}
  lines = [line for path in want for line in _misfit(path, found, want, have)]
  used = {origin.source for origin in found.values() if origin}
  lines += [
    f'unused source: {path} {trees.describe(have[path])}'
    for path in have
    if path not in used
  ]
  if lines:
    raise ValueError(
      f'The checkpoint does not fit the model, {len(lines)} parameters:\n  '
      + '\n  '.join(lines)
    )
  return found


def upcycle(
  dense: trees.Tree,
  sparse: trees.Tree,
  *,
  key: jax.Array,
  expert_init: ExpertInit = inits.copy,
  rules: Rules = RULES,
  fresh: trees.Tree | None = None,
  shardings: trees.Tree | None = None,
) -> dict[str, Any]:
  """The parameters of the sparse model (Sparse Upcycling, section 3).

  Leaf by leaf: where the source's leaf is lazy, so is the target's, and a
  caller that uses one at a time never holds the model. Optimizer slots, whose
  paths are those of their parameters plus a name, take the same rules.

  Args:
    dense: the source's parameters: arrays or lazy arrays.
    sparse: shapes and dtypes of the target's.
    key: of what is drawn.
    expert_init: from a dense parameter to all experts' ones.
    rules: what each target is made of.
    fresh: values by path for parameters that a rule makes anew; None draws
      them from N(0, 0.02^2), as T5X draws router kernels.
    shardings: where experts' parameters lie, by path: each device makes those
      that it holds. None: all where `expert_init` makes them.

  Returns:
    The target's parameters.

  Raises:
    ValueError: the trees do not fit, see `origins`.
  """
  have, want = trees.flatten(dense), trees.flatten(sparse)
  new = None if fresh is None else trees.flatten(fresh)
  places = None if shardings is None else trees.flatten(shardings)

  def make(path: str, origin: Origin) -> Any:
    shape, dtype = want[path].shape, want[path].dtype
    if origin.kind == 'fresh':
      if new is not None:
        return new[path]
      init = jax.nn.initializers.normal(0.02)
      return init(inits.fold_in(key, path), shape, dtype)

    def build(leaf: Any) -> Any:
      # Before the copies are made: those of a view would be real ones.
      leaf = leaf if leaf.dtype == dtype else leaf.astype(dtype)
      if origin.kind == 'expert':
        layer_key = inits.fold_in(key, origin.layer)
        init = expert_init
        if places is not None:
          init = _on_mesh(init, places[path])
        leaf = init(layer_key, origin.name, leaf, shape[0])
      elif copies[origin.source] > 1 and isinstance(leaf, jax.Array):
        # Or several parameters would be one buffer, which no step can donate.
        place = leaf.sharding if places is None else places[path]
        leaf = jax.device_put(leaf, place, may_alias=False)
      return leaf

    return trees.lazily(build, have[origin.source], want[path])

  found = origins(dense, sparse, rules)
  copies = collections.Counter(o.source for o in found.values())
  return trees.unflatten({path: make(path, o) for path, o in found.items()})


def depth_tile(
  source: trees.Tree,
  deeper: trees.Tree,
  order: depth.Order = depth.stretched,
  *,
  rules: Rules = RULES,
  **options: Any,
) -> dict[str, Any]:
  """The parameters, or optimizer slots, of a model of more layers.

  Dense upcycling (Rae et al. 2021, appendix G.3); where the deeper model is
  also sparse, its layers are upcycled. `rules` and options as of `upcycle`.

  Args:
    source: the source's parameters: arrays or lazy arrays.
    deeper: shapes and dtypes of the target's.
    order: which layer a layer is made of.
    rules: what each target would be made of if the depths were equal.
    **options: `key` and others of `upcycle`.

  Raises:
    ValueError: the model has fewer layers, or the trees do not fit.
  """
  tiled = depth.rules(rules, depth.sources(source, deeper, order))
  return upcycle(source, deeper, rules=tiled, **options)


@functools.cache  # or equal layers would be compiled one by one
def _on_mesh(expert_init: ExpertInit, sharding: Any) -> ExpertInit:
  return jax.jit(expert_init, static_argnums=(1, 3), out_shardings=sharding)


def receipt(
  source: trees.Tree,
  target: trees.Tree,
  rules: Rules = RULES,
  digests: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """Where every parameter came from, with checksums of the sources.

  Args:
    source: its parameters.
    target: its parameters, or their shapes.
    rules: what each target is made of.
    digests: `sha256` of each source by path; None reads them.

  Returns:
    `parameters`: counts of numbers; `checksum`: one SHA-256 over all sources;
    `origin`: by target path its kind, source and the source's SHA-256.
  """
  if digests is None:
    digests = {p: sha256(x) for p, x in trees.flatten(source).items()}
  digests = dict(sorted(digests.items()))
  found = origins(source, target, rules)
  sizes = {p: int(np.prod(x.shape)) for p, x in trees.flatten(target).items()}
  count = lambda kind: sum(  # noqa: E731
    n for p, n in sizes.items() if found[p].kind == kind
  )
  return {
    'parameters': {
      'source': sum(int(np.prod(x.shape)) for x in _leaves(source)),
      'target': sum(sizes.values()),
      **{kind: count(kind) for _, kind, _ in rules},
    },
    'checksum': hashlib.sha256(repr(digests).encode()).hexdigest(),
    'origin': {
      path: {'kind': o.kind}
      | ({'source': o.source, 'sha256': digests[o.source]} if o.source else {})
      for path, o in found.items()
    },
  }


def sha256(leaf: Any) -> str:
  """SHA-256 of an array's shape, dtype and bytes."""
  array = np.ascontiguousarray(leaf)
  digest = hashlib.sha256(trees.describe(array).encode())
  digest.update(array.view(np.uint8).data)
  return digest.hexdigest()


def _leaves(tree: trees.Tree) -> list[Any]:
  return list(trees.flatten(tree).values())


def _origin(path: str, have: Mapping[str, Any], rules: Rules) -> Origin | None:
  for pattern, kind, template in rules:
    match = re.fullmatch(pattern, path)
    if not match:
      continue
    if template is None:
      return Origin(kind)
    source = template(match) if callable(template) else match.expand(template)
    if source in have:
      return Origin(kind, source, *(() if kind == 'copied' else match.groups()))
  return None


def _misfit(
  path: str,
  found: Mapping[str, Origin | None],
  want: Mapping[str, Any],
  have: Mapping[str, Any],
) -> list[str]:
  origin, target = found[path], want[path]
  if origin is None:
    return [f'missing source: {path} {trees.describe(target)}']
  if origin.source is None:
    return []
  source = have[origin.source]
  # All but the axis of experts that one of them has.
  expected = tuple(target.shape)[origin.kind == 'expert' :]
  given = tuple(source.shape)[origin.kind == 'merged' :]
  if given == expected and np.can_cast(source.dtype, target.dtype):
    return []
  return [
    f'mismatch: {path} {trees.describe(target)} cannot be {origin.kind} from '
    f'{origin.source} {trees.describe(source)}'
  ]
