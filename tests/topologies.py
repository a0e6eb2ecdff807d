# SPDX-License-Identifier: Apache-2.0
r"""Compiles MoE layers for accelerators and looks at their collectives.

  python -m tests.topologies v5p:4x4x4 [h100:1x8x8 ...]

A program, since the suite does without the compilers: TPUs take the extra
`tpu-aot`, GPUs the CUDA plugin (docs/plan.md). One topology a process, for each
sets variables before JAX is imported. It ends with an error unless every layer
has two all-to-alls forward and four with backward, and gathers nothing.
"""

import collections
import functools
import os
import subprocess
import sys

from upcycle.plan import topologies

DEFAULT = 'v4:4x4x4', 'v5e:8x8', 'v5p:4x4x4', 'v6e:8x8', 'h100:1x8x8'
E, M, F, TOKENS = 32, 512, 1024, 2048


def check(name: str) -> None:
  """Compiles encoder and decoder layers, with and without a model axis."""
  topology = topologies.parse(name)
  os.environ |= topologies.environment(topology)
  import jax
  import jax.numpy as jnp

  from upcycle import partition, routing
  from upcycle.models import mlp, moe
  from upcycle.plan import hlo

  top_2 = functools.partial(routing.top_k, k=2)
  layers = {
    'encoder, Expert Choice': (routing.expert_choice, False),
    'encoder, top-2': (top_2, False),
    'decoder, top-2': (top_2, True),
  }

  def expert(rate, name=None):
    return mlp.Mlp(F, ('gelu', 'linear'), rate, jnp.bfloat16, name=name)

  def compiled(router, causal, backward):
    module = moe.MoeLayer(moe.MoeConfig(E, router), expert, causal)
    rows = partition.size(*partition.TOKENS)
    init = lambda: module.init(jax.random.key(0), jnp.zeros((rows, 1, M)))  # noqa: E731
    shapes = jax.eval_shape(init)['params']
    params, x = jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      (shapes, jax.ShapeDtypeStruct((rows, TOKENS, M), jnp.bfloat16)),
      (
        partition.shardings({'encoder': {'mlp': shapes}})['encoder']['mlp'],
        jax.NamedSharding(partition.mesh(), jax.P(partition.TOKENS)),
      ),
    )

    def forward(params, x):
      return module.apply({'params': params}, x)

    def loss(params, x):
      return jnp.sum(jnp.square(forward(params, x).astype(jnp.float32)))

    run = jax.grad(loss, (0, 1)) if backward else forward
    text = jax.jit(run).lower(params, x).compile().as_text()
    found = hlo.collectives(text, partition.mesh().size)
    return collections.Counter(c.kind for c in found)

  wrong = []
  for model in (1, 2):
    mesh = partition.make_mesh(
      (E,), model=model, devices=topologies.devices(topology)
    )
    shape = ' x '.join(map(str, mesh.shape.values()))
    with jax.set_mesh(mesh):
      for layer, (router, causal) in layers.items():
        for backward, count in ((False, 2), (True, 4)):
          kinds = compiled(router, causal, backward)
          what = f'{name:12}{shape:12}{layer:24}' + (
            'both passes' if backward else 'forward    '
          )
          print(what, dict(kinds), flush=True)
          if kinds['all-to-all'] != count or kinds['all-gather']:
            wrong.append(what)
  if wrong:
    sys.exit('\n'.join(['Not as they should be:', *wrong]))


def main(names: list[str]) -> None:
  if len(names) == 1:
    return check(*names)
  command = [sys.executable, '-m', 'tests.topologies']
  codes = [
    subprocess.run([*command, name], check=False).returncode
    for name in names or DEFAULT
  ]
  sys.exit(any(codes))


if __name__ == '__main__':
  main(sys.argv[1:])
