# SPDX-License-Identifier: Apache-2.0
r"""Times training steps of Hugging Face's T5 and ViT, step.py's dense models.

  python3 -m venv peers
  peers/bin/pip install torch==2.13.0 transformers==5.24.0
  peers/bin/python experiments/performance/peers.py

An environment of its own, and nothing of the project: random weights of the
same sizes, made-up batches of the same shapes, float32, AdamW (fused). Rows go
to step.jsonl.
"""

import json
import os
from pathlib import Path
import platform
import statistics
import time

import torch
import transformers

OUT = Path(__file__).with_name('step.jsonl')
ROUNDS = 15


def t5(rows, inputs, targets, vocab_size, **sizes):
  """T5 1.1 without dropout, its batch, and how many tokens that has."""
  config = transformers.T5Config(
    vocab_size=vocab_size,
    feed_forward_proj='gated-gelu',
    tie_word_embeddings=False,
    dropout_rate=0.0,
    use_cache=False,
    decoder_start_token_id=0,
    **sizes,
  )
  draw = lambda length: torch.randint(1, vocab_size, (rows, length))  # noqa: E731
  batch = {'input_ids': draw(inputs), 'labels': draw(targets)}
  model = transformers.T5ForConditionalGeneration(config)
  return model, batch, 'tokens', rows * (inputs + targets)


def vit(rows, classes, image_size, channels, **sizes):
  """A ViT without dropout, its batch, and how many images that has."""
  config = transformers.ViTConfig(
    image_size=image_size,
    num_channels=channels,
    num_labels=classes,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    **sizes,
  )
  batch = {
    'pixel_values': torch.randn(rows, channels, image_size, image_size),
    'labels': torch.randint(classes, (rows,)),
  }
  return transformers.ViTForImageClassification(config), batch, 'images', rows


# The shapes of step.py's configs.
CASES = {
  't5_laptop': lambda: t5(
    32,
    128,
    29,
    2176,
    d_model=128,
    num_heads=4,
    d_kv=32,
    d_ff=512,
    num_layers=2,
    num_decoder_layers=2,
  ),
  'vit_laptop': lambda: vit(
    128,
    182,
    32,
    1,
    patch_size=8,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=1,
    intermediate_size=128,
  ),
  't5_small': lambda: t5(
    4,
    512,
    114,
    32128,
    d_model=512,
    num_heads=6,
    d_kv=64,
    d_ff=1024,
    num_layers=8,
    num_decoder_layers=8,
  ),
}


def measure(name: str) -> dict:
  torch.manual_seed(0)
  model, batch, unit, amount = CASES[name]()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
  clocks = time.perf_counter, time.process_time
  seconds = []
  for _ in range(ROUNDS + 2):
    began = [clock() for clock in clocks]
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    pairs = zip(clocks, began, strict=True)
    seconds.append([clock() - start for clock, start in pairs])
  # The first steps warm up.
  ms, cpu = (1e3 * statistics.median(x) for x in zip(*seconds[2:], strict=True))
  return {
    'case': name,
    'model': 'torch',
    'parameters': sum(p.numel() for p in model.parameters()),
    'ms': ms,
    'cpu_ms': cpu,
    'unit': unit,
    'per_second': 1e3 * amount / ms,
    'processor': platform.processor() or platform.machine(),
    'cores': len(os.sched_getaffinity(0)),
    'python': platform.python_version(),
    'torch': torch.__version__,
    'transformers': transformers.__version__,
    'tunables': os.environ.get('GLIBC_TUNABLES', ''),
  }


def main() -> None:
  for name in CASES:
    row = measure(name)
    print(f'{name:12}{row["ms"]:10.1f} ms{row["per_second"]:10.0f} a second')
    with OUT.open('a') as file:
      file.write(json.dumps(row) + '\n')


if __name__ == '__main__':
  main()
