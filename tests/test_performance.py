# SPDX-License-Identifier: Apache-2.0
"""What makes the MoE layer fast, as far as a compiler tells; no times."""

import math
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from upcycle import experts, routing
from upcycle.models import moe
from upcycle.models.mlp import Mlp

ROOT = pathlib.Path(__file__).parents[1]
M, F, E, TOKENS = 64, 256, 8, 1024
ROUTERS = {'expert choice': routing.expert_choice, 'top-2': routing.top_k}


def compiled(router, groups):
  """Both passes of a gated layer of two slots a token, and its capacity."""

  def expert(dropout_rate, name):
    return Mlp(F, ('gelu', 'linear'), dropout_rate, name=name)

  config = moe.MoeConfig(
    num_experts=E, router=router, group_size=TOKENS // groups
  )
  layer = moe.MoeLayer(config, expert)
  x = jax.ShapeDtypeStruct((groups, TOKENS // groups, M), jnp.float32)
  params = jax.eval_shape(layer.init, jax.random.key(0), x)['params']

  def total(params, x):
    return jnp.sum(jnp.square(layer.apply({'params': params}, x)))

  gradient = jax.jit(jax.value_and_grad(total, (0, 1)))
  return gradient.lower(params, x).compile(), config.capacity(x.shape[1])


@pytest.mark.parametrize('router', ROUTERS.values(), ids=ROUTERS)
@pytest.mark.parametrize('groups', [1, 8])
def test_memory_is_that_of_what_is_kept(router, groups, monkeypatch):
  """Every slot's token and pre-activations, and a third of that."""
  monkeypatch.setattr(experts, 'LARGE_KERNEL', 0)
  step, capacity = compiled(router, groups)
  kept = 4 * groups * E * capacity * (M + 2 * F)
  assert step.memory_analysis().temp_size_in_bytes <= 1.3 * kept


@pytest.mark.parametrize('router', ROUTERS.values(), ids=ROUTERS)
@pytest.mark.parametrize('large', [0, 2**30])
def test_nothing_is_as_large_as_a_dispatch_mask(router, large, monkeypatch):
  monkeypatch.setattr(experts, 'LARGE_KERNEL', large)
  monkeypatch.setattr(experts, 'MANY_ROWS', 2**30)
  step, capacity = compiled(router, 1)
  shapes = re.findall(r'[a-z]+\d+\[([\d,]+)\]', step.as_text())
  sizes = [math.prod(map(int, shape.split(','))) for shape in {*shapes}]
  assert max(sizes) < TOKENS * E * capacity
  # Kernels and activations are there, so the text was understood.
  assert {E * M * F, TOKENS * M} <= {*sizes}


def test_benchmark_of_the_layer():
  out = subprocess.run(
    [sys.executable, 'experiments/performance/benchmark.py', '--quick'],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  header, *lines = out.splitlines()
  assert header.split()[:3] == ['shape', 'groups', 'E']
  assert [line.split()[0] for line in lines] == ['laptop'] * len(lines)
  assert len(lines) >= len(ROUTERS)
