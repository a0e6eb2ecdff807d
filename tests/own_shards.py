# SPDX-License-Identifier: Apache-2.0
"""What surgery keeps in the memory of one of two processes; a program.

  python -m tests.own_shards DENSE_CHECKPOINT ADDRESS INDEX

prints JSON: bytes of the process's own shards, of the largest dense leaf, and
by how many the resident memory grew at its peak.
"""

import json
import sys

import jax
import numpy as np

from upcycle import initialize, losses, optim, partition
from upcycle.data import batches
from upcycle.models import moe, t5


def model(E=32):
  config = t5.preset(
    't5_1_1_small',
    vocab_size=128,
    emb_dim=512,
    num_heads=4,
    head_dim=32,
    mlp_dim=2048,
    num_encoder_layers=4,
    num_decoder_layers=1,
    encoder_moe=moe.MoeConfig(num_experts=E) if E else None,
  )
  return t5.T5(config)


def resident(line: str) -> int:
  with open('/proc/self/status', encoding='utf-8') as lines:
    (found,) = (x for x in lines if x.startswith(line))
  return 1024 * int(found.split()[1])


def upcycle(path: str, sparse):
  ones = np.ones((2, 4), np.int32)
  batch = batches.model_batch(ones, ones)
  rows = {name: x[:1] for name, x in batch.items()}
  return initialize.from_checkpoint(
    initialize.InitFrom(path),
    sparse,
    losses.seq2seq,
    optim.adafactor(0.1),
    partition.put_batch(rows),
    0,
  )[0]


def main(dense: str, address: str, index: str) -> None:
  jax.distributed.initialize(address, 2, int(index))
  small, sparse = model(2), model()
  with jax.set_mesh(partition.make_mesh(small.num_experts())):
    upcycle(dense, small)  # what programs take, whatever they work on
    before = resident('VmRSS')
    state = upcycle(dense, sparse)
    grown = resident('VmHWM') - before
  own = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(state)
    for shard in leaf.addressable_shards
  )
  leaf = max(x.nbytes // 32 for x in jax.tree.leaves(state.params))
  print(json.dumps({'own': own, 'leaf': leaf, 'grown': grown}), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
