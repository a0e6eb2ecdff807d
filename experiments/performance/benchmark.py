# SPDX-License-Identifier: Apache-2.0
r"""Times MoE layers against the floating-point bound.

  python experiments/performance/benchmark.py [--only='T5 Base'] [--quick]
  python experiments/performance/benchmark.py --figure

The bound is a dense MLP of the same sizes over the same tokens, times the slots
a token has: 1.0 is a layer that costs its matmuls and nothing else. The layer
is the model's own, router and losses included, in float32; both passes are the
gradients with respect to tokens and parameters, and the value. Beside it stand
the same routing by one-hot einsums, as T5X and V-MoE do it, and the experts'
matmuls alone, forward ("matmuls"), which shows what is lost because many small
ones are slower than a large one. Rows go to layer.jsonl, --figure draws them.
"""

import argparse
from collections.abc import Callable
import functools
import json
import math
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import numpy as np
import timing

from upcycle import dispatch, results
from upcycle.models import mlp, moe

OUT = Path(__file__).with_name('layer.jsonl')
PASSES = 'fwd', 'fwd+bwd'


def layer(case: cases.Case) -> tuple[moe.MoeLayer, mlp.Mlp]:
  """The MoE layer of a case, and the dense MLP it is upcycled from."""
  shape = cases.SHAPES[case.shape]

  def expert(dropout_rate: float, name: str | None = None) -> mlp.Mlp:
    return mlp.Mlp(
      shape.F,
      shape.activations,
      dropout_rate,
      use_bias=shape.use_bias,
      name=name,
    )

  config = moe.MoeConfig(
    num_experts=case.E,
    router=cases.ROUTERS[case.router],
    capacity_factor=2.0,
    group_size=shape.tokens // case.groups,
    aux_weights=()
    if case.router == 'Expert Choice'
    else (('load_balance', 0.01),),
  )
  return moe.MoeLayer(config, expert), expert(0.0)


def of_experts(sparse, dense, params, x):
  """The layer: its output, and its weighted losses."""
  y, sown = sparse.apply({'params': params}, x, mutable=['losses'])
  return y, sum(jax.tree.leaves(sown.get('losses', {})))


def of_onehot(sparse, dense, params, x):
  """The same by dense dispatch and combine arrays [G, S, E, C]."""
  kernel = params['router']['router_weights']['w']['kernel']
  slots = sparse.config.capacity(x.shape[1])
  routed = sparse.config.router(x @ kernel, slots)
  taken, weights = routed.masks(x.shape[1])
  rows = dispatch.dispatch_onehot(x, taken).swapaxes(0, 1)
  run = jax.vmap(lambda p, r: dense.apply({'params': p}, r))
  y = run(params['expert'], rows).swapaxes(0, 1)
  aux = sum(w * routed.aux[name] for name, w in sparse.config.aux_weights)
  return dispatch.combine_onehot(y, weights), aux


def of_matmuls(sparse, dense, params, x):
  """The experts alone, on rows that need not be gathered or added up."""
  slots = sparse.config.capacity(x.shape[1])
  rows = jnp.resize(
    x, (sparse.config.num_experts, x.shape[0] * slots, x.shape[2])
  )
  step = lambda _, pair: (None, dense.apply({'params': pair[0]}, pair[1]))  # noqa: E731
  y = jax.lax.scan(step, None, (params['expert'], rows))[1]
  return jnp.resize(y, x.shape), 0.0


def of_routing(sparse, dense, logits, x):
  """Softmax, selection and losses: from logits to weights and places."""
  slots = sparse.config.capacity(logits.shape[1])
  routed = sparse.config.router(logits, slots)
  aux = sum(w * routed.aux[name] for name, w in sparse.config.aux_weights)
  return routed.weight, aux


def of_dense(sparse, dense, params, x):
  return dense.apply({'params': params}, x), 0.0


def functions(case: cases.Case) -> dict[str, Callable[[], object]]:
  """What takes turns: every form, by its name and pass."""
  shape = cases.SHAPES[case.shape]
  sparse, dense = layer(case)
  keys = jax.random.split(jax.random.key(0), 3)
  flat = jax.random.normal(keys[0], (shape.tokens, shape.M))
  x = flat.reshape(case.groups, -1, shape.M)
  params = jax.jit(sparse.init)(keys[1], x)['params']
  forms = {
    'dense': (of_dense, jax.jit(dense.init)(keys[1], flat)['params'], flat),
    'layer': (of_experts, params, x),
    'matmuls': (of_matmuls, params, x),
    'one-hot': (of_onehot, params, x),
    'routing': (
      of_routing,
      jax.random.normal(keys[2], (*x.shape[:2], case.E)),
      x,
    ),
  }
  if not case.onehot:
    del forms['one-hot']
  runs = {}
  for name, (form, p, tokens) in forms.items():
    form = functools.partial(form, sparse, dense)
    cotangent = jax.random.normal(
      keys[2], jax.eval_shape(form, p, tokens)[0].shape
    )

    def total(p, tokens, cotangent, form=form):
      y, aux = form(p, tokens)
      return jnp.vdot(y, cotangent) + aux

    both = jax.jit(jax.value_and_grad(total, (0, 1)))
    for key, function, arguments in (
      (PASSES[0], jax.jit(form), (p, tokens)),
      (PASSES[1], both, (p, tokens, cotangent)),
    ):
      # XLA's backward pass of a loop over experts is no bound of anything.
      if (name, key) == ('matmuls', PASSES[1]):
        continue
      compiled = function.lower(*arguments).compile()
      runs[name, key] = _call(compiled, arguments)
  return runs


def _call(compiled, arguments):
  def call():
    jax.block_until_ready(compiled(*arguments))

  call.memory = compiled.memory_analysis()
  return call


def measure(case: cases.Case, seconds: float) -> dict:
  """A row of results; ratios are to the bound, two dense MLPs."""
  runs = functions(case)
  times = timing.in_turn(runs, seconds=seconds)
  row = case._asdict() | {
    'group_size': cases.SHAPES[case.shape].tokens // case.groups
  }
  for name, key in runs:
    ratio = timing.median_ratio(times[name, key], times['dense', key]) / 2
    row[f'{name} {key}'], row[f'{name} {key} cpu'] = ratio.tolist()
    row[f'{name} {key} ms'] = float(np.median(times[name, key][:, 0]))
  row['temporary'] = runs['layer', PASSES[1]].memory.temp_size_in_bytes / kept(
    case
  )
  row['rounds'] = len(times['dense', PASSES[0]])
  return row


def kept(case: cases.Case) -> int:
  """Bytes that a backward pass needs: of every slot its token and its
  pre-activations.
  """
  shape = cases.SHAPES[case.shape]
  sparse, _ = layer(case)
  slots = (
    case.groups * case.E * sparse.config.capacity(shape.tokens // case.groups)
  )
  return 4 * slots * (shape.M + len(shape.activations) * shape.F)


HEADER = (
  f'{"shape":8}{"groups":>7}{"E":>5}  {"router":14}'
  f'{"fwd":>12}{"goal":>6}{"fwd+bwd":>13}{"goal":>6}'
  f'{"matmuls":>9}{"one-hot":>14}{"routing":>9}{"memory":>8}'
)


def line(row: dict) -> str:
  """A row of the table: ratios to the bound (of CPU time), and goals."""
  ours = [
    f'{row[f"layer {p}"]:.2f} ({row[f"layer {p} cpu"]:.2f})' for p in PASSES
  ]
  goals = row['goals'] or ('', '')
  routing = row[f'routing {PASSES[1]} ms'] / row[f'layer {PASSES[1]} ms']
  onehot = ''.join(f'{row.get(f"one-hot {p}", math.nan):7.2f}' for p in PASSES)
  return (
    f'{row["shape"]:8}{row["groups"]:7}{row["E"]:5}  {row["router"]:14}'
    f'{ours[0]:>12}{goals[0]:>6}{ours[1]:>13}{goals[1]:>6}'
    f'{row["matmuls fwd"]:9.2f}{onehot}{routing:9.1%}{row["temporary"]:8.2f}'
  )


def newest(path: Path) -> dict[tuple, dict]:
  """The last row of every case."""
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return {
    tuple(row[k] for k in ('shape', 'groups', 'E', 'router')): row
    for row in rows
  }


def figure(rows: dict[tuple, dict]) -> list[Path]:
  """Both passes over the bound, against experts and against group size."""
  import matplotlib.pyplot as plt

  label, key = 'time / floating-point bound', PASSES[1]
  curves = {
    'layer': 'this layer',
    'one-hot': 'one-hot',
  }
  experts = [rows['T5 Base', 1, E, 'Expert Choice'] for E in (8, 32, 128)]
  groups = [rows[case[:4]] for case in cases.GROWTH]
  with plt.rc_context(results.STYLE):
    drawn, axes = plt.subplots(1, 2, figsize=(9.6, 4.0), sharey=True)
    for axis, found, name, title in (
      (axes[0], experts, 'E', '4,096 tokens a group'),
      (axes[1], groups, 'group_size', '32 experts'),
    ):
      for form, words in curves.items():
        has = [row for row in found if f'{form} {key}' in row]
        axis.plot(
          [row[name] for row in has],
          [row[f'{form} {key}'] for row in has],
          marker='o',
          label=words,
        )
      axis.axhline(1, color='#888888', linestyle='--', label='bound')
      axis.set_xscale('log', base=2)
      ticks = [row[name] for row in found]
      axis.set_xticks(ticks, [f'{tick:,}' for tick in ticks])
      axis.set(title=title, ylim=(0, None))
    axes[0].set(xlabel='experts', ylabel=label)
    axes[1].set(xlabel='tokens a group')
    axes[1].legend()
    drawn.suptitle(
      'MoE layer of T5 Base width, forward and backward',
      x=0.01,
      ha='left',
      weight='bold',
    )
    return results.save(drawn, OUT.with_name('figure'))


QUICK = cases.Shape(8, 16, cases.GATED, False, 32)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--only', choices=[*cases.SHAPES, 'growth'], help='a part'
  )
  parser.add_argument('--quick', action='store_true', help='tiny, not kept')
  parser.add_argument('--figure', action='store_true', help='draw, not measure')
  parser.add_argument('--seconds', type=float, default=10.0, help='a case')
  args = parser.parse_args()
  if args.figure:
    print(*figure(newest(OUT)), sep='\n')
    return
  chosen = {c[:4]: c for c in [*cases.GROWTH, *cases.TABLE]}.values()
  if args.only == 'growth':
    chosen = cases.GROWTH
  elif args.only:
    chosen = [c for c in chosen if c.shape == args.only]
  if args.quick:
    cases.SHAPES['laptop'] = QUICK
    chosen = [
      c._replace(E=4) for c in cases.TABLE if c.shape == 'laptop' and c.E == 8
    ]
  print(HEADER)
  for case in chosen:
    row = measure(case, 0.0 if args.quick else args.seconds)
    print(line(row), flush=True)
    if not args.quick:
      results.append(OUT, row | timing.machine())


if __name__ == '__main__':
  main()
