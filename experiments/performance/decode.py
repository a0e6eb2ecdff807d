# SPDX-License-Identifier: Apache-2.0
r"""Times a generated token, of a dense T5 and of the same T5 upcycled.

  python experiments/performance/decode.py [--quick]

T5 1.1 Small with random weights, in float32, generates greedily for inputs of
64 tokens; every second layer has 8 or 32 experts of the dense MLP's size, of
which a token of the decoder chooses 2. The models take turns in one process;
what one more token takes is a long generation's time less a short one's. Rows
go to decode.jsonl.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import timing

from upcycle import decode, initialize, results, routing
from upcycle.models import moe, t5

OUT = Path(__file__).with_name('decode.jsonl')
BATCHES, EXPERTS, INPUTS, SHORT, LONG = (1, 8, 64), (8, 32), 64, 1, 33
QUICK = {'emb_dim': 16, 'num_encoder_layers': 2, 'num_decoder_layers': 2}


def model(experts: int, **changes) -> t5.T5:
  """Dense if there are no experts."""
  if experts:
    changes['encoder_moe'] = moe.MoeConfig(experts)
    changes['decoder_moe'] = moe.MoeConfig(experts, routing.top_k)
  return t5.T5(t5.preset('t5_1_1_small', **changes))


def run(of: t5.T5, params, tokens, length: int):
  """Generates that many tokens."""
  found = decode.generate(of, params, tokens, max_length=length)
  return jax.block_until_ready(found)


def endless(params):
  """The same without an end token, so that all rows are as long."""
  head = params['decoder']['logits_dense']['kernel']
  head = {'logits_dense': {'kernel': head.at[:, 1].set(0)}}
  return params | {'decoder': params['decoder'] | head}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--quick', action='store_true', help='tiny, unsaved')
  quick = parser.parse_args().quick
  init = jax.jit(initialize.init_params, static_argnums=(0, 1))
  models = {E: model(E, **(QUICK if quick else {})) for E in (0, *EXPERTS)}
  params = {E: endless(init(found, 0)) for E, found in models.items()}
  rng = np.random.default_rng(0)
  for batch in BATCHES[: 1 if quick else None]:
    tokens = jnp.asarray(rng.integers(2, 32_000, (batch, INPUTS)))
    times = timing.in_turn(
      {
        (E, length): functools.partial(run, found, params[E], tokens, length)
        for E, found in models.items()
        for length in (SHORT, LONG)
      }
    )
    each = {
      E: (times[E, LONG] - times[E, SHORT]) / (LONG - SHORT) for E in models
    }
    for E in models:
      milliseconds, cpu = np.median(each[E], axis=0)
      ratio = timing.median_ratio(each[E], each[0])
      row = {
        'batch': batch,
        'experts': E,
        'ms_per_step': float(milliseconds),
        'cpu_ms_per_step': float(cpu),
        'ratio_to_dense': float(ratio[0]),
        'cpu_ratio_to_dense': float(ratio[1]),
        'tokens_per_second': 1e3 * batch / float(milliseconds),
        **timing.machine(),
      }
      print({k: v for k, v in row.items() if k not in timing.machine()})
      if not quick:
        results.append(OUT, row)


if __name__ == '__main__':
  main()
