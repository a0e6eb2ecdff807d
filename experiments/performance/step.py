# SPDX-License-Identifier: Apache-2.0
r"""Times whole training steps, dense and sparse, and what they keep in memory.

  python experiments/performance/step.py [--only=t5_laptop] [--quick]
  python experiments/performance/step.py --base

Model, optimizer and loss are those of the configs, batches are made up. The
dense step, the sparse one and the sparse model's optimizer alone take turns in
one process; times are medians. The bound of a sparse step is the dense one and
the operations that its experts add, at the dense step's rate. Rows go to
step.jsonl, where peers.py adds those of PyTorch. --base takes steps of T5 1.1
Base with 32 experts, alone in a process, for its peak memory.
"""

import argparse
import copy
from pathlib import Path
import resource
import time
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from upcycle import initialize, losses, results, train_step
from upcycle.models import moe

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(__file__).with_name('step.jsonl')
MB = 1e6


class Case(NamedTuple):
  """A sparse model's config; the dense model is what it is upcycled from.

  Attributes:
    config: name of the gin file.
    rows: of a batch.
    lengths: tokens of a row, by stack.
    bindings: in which it differs.
  """

  config: str
  rows: int
  lengths: dict[str, int]
  bindings: tuple[str, ...] = ()


F32 = "t5.preset.dtype = 'float32'"  # bfloat16 is not faster on CPUs
LAPTOP = {'encoder': 128, 'decoder': 29}
PAPER = {'encoder': 512, 'decoder': 114}
CASES = {
  't5_laptop': Case('upcycle_t5_laptop', 32, LAPTOP),
  't5_laptop_32': Case('upcycle_t5_laptop', 32, LAPTOP, ('NUM_EXPERTS = 32',)),
  'vit_laptop': Case('upcycle_vit_laptop', 128, {}),
  't5_small': Case('upcycle_t5_small', 4, PAPER, ('NUM_EXPERTS = 8', F32)),
}
QUICK = Case(
  'upcycle_vit_laptop', 2, {}, ('NUM_EXPERTS = 2', 'vit.preset.depth = 2')
)
BASE = Case('upcycle_t5_base', 4, {'encoder': 128, 'decoder': 32}, (F32,))


def configured(case: Case) -> tuple:
  """The sparse model, the loss and the optimizer of a config."""
  gin.clear_config()
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config_files_and_bindings(
    [f'configs/{case.config}.gin'], case.bindings, finalize_config=False
  )
  bound = gin.get_bindings('train.train', resolve_references=False)
  # A gin reference becomes its value when it is copied; the data's is not.
  return tuple(copy.deepcopy(bound[x]) for x in ('model', 'loss', 'optimizer'))


def made_up(model, case: Case) -> losses.Batch:
  """A batch of noise without padding."""
  rng, config = np.random.default_rng(0), model.config
  if not case.lengths:
    shape = (case.rows, *(config.image_size,) * 2, config.channels)
    labels = rng.integers(config.num_classes, size=(case.rows, 1))
    return {
      'images': rng.standard_normal(shape, np.float32),
      'labels': np.int32(labels),
      'label_weights': np.ones(labels.shape, np.float32),
      'weights': np.ones(case.rows, np.float32),
    }
  inputs, targets = (
    rng.integers(1, config.vocab_size, (case.rows, length), np.int32)
    for length in case.lengths.values()
  )
  return {
    'encoder_input_tokens': inputs,
    'decoder_target_tokens': targets,
    'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    'decoder_loss_weights': np.ones(targets.shape, np.float32),
  }


def added_flops(model, case: Case) -> float:
  """Of a step: the experts' beyond those of the dense MLPs, and the routers'.

  Forward and backward pass together are three products of each kernel.
  """
  config, total = model.config, 0
  if case.lengths:
    width, kernels = config.emb_dim, len(config.mlp_activations) + 1
    layers = [
      (length, sparse)
      for stack, length in case.lengths.items()
      for sparse in config.sparse_layers(stack).values()
    ]
  else:
    width, kernels = config.width, 2
    layers = [(config.tokens, x) for x in config.sparse_layers().values()]
  for length, sparse in layers:
    G, S = moe.group_shape(case.rows, length, sparse)
    slots = G * sparse.num_experts * sparse.capacity(S)
    extra = slots - case.rows * length
    total += 6 * extra * kernels * width * config.mlp_dim
    total += 6 * G * S * width * sparse.num_experts
  return total


class Step:
  """A compiled training step that goes on from its own state."""

  def __init__(self, model, loss, optimizer, batch, seed=0):
    self.batch = jax.device_put(batch)
    start = jax.jit(lambda: initialize.from_scratch(model, optimizer, seed))
    self.state = start()
    step = train_step.make_train_step(model, loss, optimizer)
    lowered = jax.jit(step, donate_argnums=0).lower(self.state, self.batch)
    self.flops = lowered.cost_analysis()['flops']
    began = time.perf_counter()
    self.run = lowered.compile()
    self.compile_seconds = time.perf_counter() - began

  def __call__(self):
    self.state, _ = jax.block_until_ready(self.run(self.state, self.batch))

  def facts(self) -> dict[str, float]:
    """Memory in MB: what comes in, what is updated in place, and the rest."""
    found = self.run.memory_analysis()
    return {
      'parameters': sum(x.size for x in jax.tree.leaves(self.state.params)),
      'compile_seconds': self.compile_seconds,
      'argument_mb': found.argument_size_in_bytes / MB,
      'alias_mb': found.alias_size_in_bytes / MB,
      'temporary_mb': found.temp_size_in_bytes / MB,
    }


class Update:
  """The optimizer's part of a step alone: from gradients to parameters."""

  def __init__(self, optimizer, state):
    # Not zeros, which some processors are slower or faster at.
    self.grads = jax.tree.map(lambda p: 1e-3 * p + 1e-5, state.params)
    self.state = jax.tree.map(jnp.copy, (state.params, state.opt_state))

    def update(state, grads):
      params, opt_state = state
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state

    self.run = jax.jit(update, donate_argnums=0)

  def __call__(self):
    self.state = jax.block_until_ready(self.run(self.state, self.grads))


def measure(name: str, case: Case, rounds: int) -> list[dict]:
  """A row of the dense step, and one of the sparse step."""
  model, loss, optimizer = configured(case)
  batch = made_up(model, case)
  models = {'dense': model.dense(), 'sparse': model}
  steps = {k: Step(m, loss, optimizer, batch) for k, m in models.items()}
  updates = {
    f'{k} update': Update(optimizer, step.state) for k, step in steps.items()
  }
  times = timing.in_turn(steps | updates, rounds=rounds)
  ms = {name: np.median(found, axis=0) for name, found in times.items()}
  extra = added_flops(model, case) / steps['dense'].flops
  bound = {'dense': ms['dense'], 'sparse': ms['dense'] * (1 + extra)}
  return [
    {
      'case': name,
      'model': kind,
      **step.facts(),
      **rates(batch, ms[kind]),
      **ratio('over_bound', ms[kind], bound[kind]),
      **ratio('optimizer_share', ms[f'{kind} update'], ms[kind]),
    }
    for kind, step in steps.items()
  ]


def base(rounds: int = 2) -> list[dict]:
  """Steps of 2.0B parameters and this process's peak of resident memory."""
  model, loss, optimizer = configured(BASE)
  batch = made_up(model, BASE)
  step = Step(model, loss, optimizer, batch)
  ms = np.median(timing.in_turn({'sparse': step}, rounds=rounds)['sparse'], 0)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KB on Linux
  facts = {'case': 't5_base_32', 'model': 'sparse', 'peak_gb': peak / 1e6}
  return [facts | step.facts() | rates(batch, ms)]


def rates(batch: losses.Batch, ms: np.ndarray) -> dict:
  unit, amount = losses.count(batch)
  rate = 1e3 * amount / ms[0]
  return {'ms': ms[0], 'cpu_ms': ms[1], 'unit': unit, 'per_second': rate}


def ratio(name: str, a: np.ndarray, b: np.ndarray) -> dict[str, float]:
  """By the clock, and of CPU time, which other processes disturb less."""
  return {name: a[0] / b[0], f'{name}_cpu': a[1] / b[1]}


def table(rows: list[dict]) -> str:
  """The rows for reading, with goals; in brackets of CPU time."""
  lines = [
    f'{"case":13}{"model":7}{"ms a step":>10}{"a second":>16}'
    f'{"over bound":>14}{"optimizer":>13}{"other MB":>10}{"compile s":>10}',
    f'{"goal":46}{"1.10":>14}{"15%":>13}',
  ]
  for row in rows:
    bound, share = (
      f'{row[x]:{f}} ({row[f"{x}_cpu"]:{f}})' if x in row else ''
      for x, f in (('over_bound', '.2f'), ('optimizer_share', '.0%'))
    )
    lines.append(
      f'{row["case"]:13}{row["model"]:7}{row["ms"]:10.1f}'
      f'{row["per_second"]:9.0f} {row["unit"]:6}{bound:>14}{share:>13}'
      f'{row["temporary_mb"]:10.1f}{row["compile_seconds"]:10.1f}'
    )
  return '\n'.join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--only', choices=CASES, help='one case')
  parser.add_argument('--quick', action='store_true', help='tiny, not kept')
  parser.add_argument('--base', action='store_true', help='2.0B parameters')
  parser.add_argument('--rounds', type=int, default=15)
  args = parser.parse_args()
  # Or seconds of compilation would be those of reading a file.
  jax.config.update('jax_enable_compilation_cache', False)
  if args.quick:
    rows = measure('quick', QUICK, 1)
  elif args.base:
    rows = base()
  else:
    names = [args.only] if args.only else list(CASES)
    rows = [row for x in names for row in measure(x, CASES[x], args.rounds)]
  print(table(rows))
  if not args.quick:
    for row in rows:
      results.append(OUT, row | timing.machine())


if __name__ == '__main__':
  main()
