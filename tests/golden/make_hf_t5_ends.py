# SPDX-License-Identifier: Apache-2.0
"""Writes hf_t5_ends.npz: `generate` where rows end at different lengths.

In the environment of make_hf_t5.py, whose hf_t5_v1_1 it takes:

    hf/bin/python tests/golden/make_hf_t5_ends.py

README.md says what it holds.
"""

import json

from make_hf_t5 import BEAM, HERE, MAX_NEW_TOKENS, SIZES, decoded, stands
import numpy as np
import torch
import transformers

N = BEAM['num_beams']
EOS_FACTOR = 3.0  # of the end token's row of lm_head: it is likelier
LENGTHS = 40, 33, 25, 17, 9, 5
SEEDS = range(200)  # the first that is telling is taken


def make_inputs(seed):
  rng = np.random.default_rng(seed)
  inputs = np.zeros((len(LENGTHS), max(LENGTHS)), np.int64)
  for row, n in zip(inputs, LENGTHS, strict=True):
    row[:n] = [*rng.integers(2, SIZES['vocab_size'], n - 1), 1]
  return torch.from_numpy(inputs)


def generate(model, inputs):
  """Greedy tokens [B, L]; all beams [B, N, L] and their scores [B, N]."""
  greedy, beams, scores = decoded(model, inputs, N)
  shape = len(inputs), N
  return {
    'greedy': greedy,
    'beam4': beams.reshape(*shape, -1),
    'beam4_scores': scores.reshape(shape),
  }


def is_telling(found):
  """Rows end at four lengths or more, and beams of most rows at several."""
  greedy, best = found['greedy'], found['beam4'][:, 0]
  lengths = [(x > 0).sum(-1) for x in (greedy, best, found['beam4'])]
  return (
    all(len(set(n)) >= 4 and n.max() == MAX_NEW_TOKENS for n in lengths[:2])
    and sum(len(set(n)) > 1 for n in lengths[2]) >= 4
    and (greedy != best).any()
  )


def main():
  model = transformers.T5ForConditionalGeneration.from_pretrained(
    HERE / 'hf_t5_v1_1', attn_implementation='eager'
  ).eval()
  with torch.no_grad():
    model.lm_head.weight[1] *= EOS_FACTOR
  for seed in SEEDS:
    inputs = make_inputs(seed)
    found = generate(model, inputs)
    greedy, beams = found['greedy'], found['beam4'].reshape(-1, MAX_NEW_TOKENS)
    if is_telling(found) and stands(model, greedy, beams, inputs, N):
      break
  else:
    raise SystemExit('no seed is telling')
  meta = {
    'torch': torch.__version__,
    'transformers': transformers.__version__,
    'seed': seed,
    'eos_factor': EOS_FACTOR,
    'max_new_tokens': MAX_NEW_TOKENS,
    'beam4': BEAM,
  }
  arrays = {
    k: x.astype(np.int32 if x.dtype == np.int64 else np.float32)
    for k, x in {'inputs': inputs.numpy(), **found}.items()
  }
  np.savez_compressed(
    HERE / 'hf_t5_ends.npz', meta=np.asarray(json.dumps(meta)), **arrays
  )
  print(meta, *((found[k] > 0).sum(-1) for k in ('greedy', 'beam4')), sep='\n')


if __name__ == '__main__':
  main()
