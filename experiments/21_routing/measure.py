# SPDX-License-Identifier: Apache-2.0
"""From a run's MODEL_DIR to the numbers that are drawn; all plain lists."""

from collections.abc import Iterable, Iterator
import copy
import itertools
import json
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
import tokens

from upcycle import checkpoints, evaluate_checkpoint, inspect_routing, partition
from upcycle.data import text, vocabulary
from upcycle.results import metrics

BATCHES = 8  # of validation data, that tokens are counted in
MOST = 4  # experts of a token that are told apart: 4 or more are one


def of_run(folder: Path) -> dict[str, Any]:
  """Everything of one run; what is shown of tokens is of its last checkpoint.

  Raises:
    FileNotFoundError, ValueError: no upcycled run with checkpoints.
  """
  rows = metrics.read(folder)
  start = min(row['step'] for row in rows)
  model, loss, data = _configured(folder)
  batches = list(itertools.islice(data, BATCHES))
  seen = inspect_routing.make_seen(model, loss)
  receipt = json.loads((folder / 'receipt.json').read_text())
  dense = checkpoints.read(receipt['source']['path']).params
  dense = jax.tree.map(np.asarray, dense)
  drift = {layer: [] for layer in model.moe_layers()}
  takers = {layer: [] for layer in model.moe_layers()}
  last = []
  with jax.set_mesh(partition.make_mesh(model.num_experts())):
    for step, source in _checkpoints(folder):
      params = evaluate_checkpoint.parameters(source, model)
      for layer, pair in inspect_routing.vectors(dense, params).items():
        found = inspect_routing.apart(*pair)._asdict()
        drift[layer].append({'step': step - start, **tokens.plain(found)})
      last = [jax.device_get(seen(params, batch)) for batch in batches]
      for layer in takers:
        masks = [_real(batch, layer) for batch in batches]
        shares = _takers((s[layer].weights for s in last), masks)
        takers[layer].append({'step': step - start, 'shares': shares})
  return {
    'start': start,
    'load': {layer: _load(rows, layer, start) for layer in takers},
    'takers': takers,
    'drift': drift,
    'tokens': tokens.images(batches, last, model.config.patch_size)
    if 'images' in batches[0]
    else tokens.text(batches, last, _words()),
  }


def _configured(folder: Path) -> tuple[Any, Any, Iterable[Any]]:
  """The model, loss and validation data of a run."""
  gin.clear_config()
  gin.parse_config_file(str(folder / 'config.gin'))
  bound = gin.get_bindings('train.train', resolve_references=False)
  # A gin reference becomes its value when it is copied.
  names = 'model', 'loss', 'eval_data'
  return tuple(copy.deepcopy(bound[name]) for name in names)


def _checkpoints(folder: Path) -> Iterator[tuple[int, checkpoints.Checkpoint]]:
  kept = (folder / 'checkpoints').glob('[0-9]*')
  for path in sorted(kept, key=lambda p: int(p.name)):
    yield int(path.name), checkpoints.read(path)


def _load(rows: list[dict], layer: str, start: int) -> dict[str, list]:
  """Shares of an MoE layer's filled slots by expert, as training logs them."""
  those = [row for row in rows if f'{layer}/load' in row]
  return {
    'steps': [row['step'] - start for row in those],
    'shares': [row[f'{layer}/load'] for row in those],
  }


def _real(batch: dict[str, np.ndarray], layer: str) -> np.ndarray:
  """Which tokens are no padding, [B, L] or [B, 1]."""
  if layer.startswith('encoder/'):
    return batch['encoder_input_tokens'] > 0
  if layer.startswith('decoder/'):
    return batch['decoder_target_tokens'] > 0
  return batch['weights'][:, None] > 0


def _takers(weights: Iterable[np.ndarray], masks: list) -> list[float]:
  """Shares of tokens that 0, 1, ... and MOST or more experts have taken."""
  counts = [
    np.minimum((w > 0).sum(-1), MOST)[np.broadcast_to(mask, w.shape[:2])]
    for w, mask in zip(weights, masks, strict=True)
  ]
  found = np.bincount(np.concatenate(counts), minlength=MOST + 1)
  return tokens.plain(found / found.sum())


def _words() -> vocabulary.Vocabulary:
  """Of the text that the run is evaluated on."""
  with gin.config_scope('eval'):
    bound = gin.get_bindings(text.span_corruption)
  if 'corpus' not in bound:
    raise ValueError('The T5 is of another task than text.span_corruption.')
  return vocabulary.load(bound['corpus'])
