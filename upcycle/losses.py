# SPDX-License-Identifier: Apache-2.0
"""Losses: pure functions; the training step adds them up.

A loss of a model is called as loss(apply, batch), where apply(**inputs) gives
logits, and returns sums, so that microbatches and hosts can be added exactly.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Batch = Mapping[str, Any]
Sums = dict[str, Float[Array, '']]


def cross_entropy(
  logits: Float[Array, '*B V'],
  targets: Int[Array, '*B'],
  *,
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
) -> tuple[Float[Array, '*B'], Float[Array, '*B']]:
  """Cross-entropy in nats, and z_loss * log(z)^2, of every position.

  z is the softmax's normaliser: the second term keeps logits from drifting
  (T5X: 1e-4). With label smoothing the entropy of the smoothed target is taken
  off, so that a perfect model has loss 0.
  """
  log_z = jax.nn.logsumexp(logits, axis=-1)
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  loss = log_z - picked
  if label_smoothing:
    V = logits.shape[-1]
    other = label_smoothing / (V - 1)
    top = 1 - label_smoothing
    off = V * log_z - logits.sum(-1) - loss
    entropy = -top * jnp.log(top) - (V - 1) * other * jnp.log(other)
    loss = top * loss + other * off - entropy
  return loss, z_loss * log_z**2


def seq2seq(
  apply: Callable[..., Array],
  batch: Batch,
  *,
  z_loss: float = 1e-4,
  label_smoothing: float = 0.0,
) -> Sums:
  """T5's loss: sums over target tokens.

  Args:
    apply: from the batch's inputs to logits [B, L, V].
    batch: the model's inputs, `decoder_target_tokens` [B, L] among them, and
      `decoder_loss_weights` [B, L].
    z_loss: see `cross_entropy`.
    label_smoothing: see `cross_entropy`.

  Returns:
    Sums `loss`, `z_loss`, `accuracy` and `weight`, their number of tokens.
  """
  inputs = {k: v for k, v in batch.items() if k != 'decoder_loss_weights'}
  weights = batch['decoder_loss_weights'].astype(jnp.float32)
  targets = batch['decoder_target_tokens']
  logits = apply(**inputs)
  loss, extra = cross_entropy(
    logits, targets, z_loss=z_loss, label_smoothing=label_smoothing
  )
  return {
    'loss': jnp.sum(loss * weights),
    'z_loss': jnp.sum(extra * weights),
    'accuracy': jnp.sum((logits.argmax(-1) == targets) * weights),
    'weight': jnp.sum(weights),
  }


def classification(
  apply: Callable[..., Array],
  batch: Batch,
  *,
  kind: str = 'softmax',
) -> Sums:
  """Loss and precision@1 of images with one label, several, or mixed ones.

  Args:
    apply: from `images` and `valid` to logits [B, V].
    batch: `images`, `labels` [B, K], `label_weights` [B, K], 0 where an image
      has fewer labels, and `weights` [B], 0 for an image that fills a batch.
    kind: 'softmax', or 'sigmoid': every class for itself, as V-MoE trains on
      images of several labels (Riquelme et al., 2021, appendix B).

  Returns:
    Sums `loss`, `z_loss` (0), `accuracy`, the weight of the label that the
    model puts first, and `weight`, the number of images.
  """
  if kind not in ('softmax', 'sigmoid'):
    raise ValueError(f"kind is 'softmax' or 'sigmoid', not {kind!r}.")
  weights, label_weights = batch['weights'], batch['label_weights']
  logits = apply(images=batch['images'], valid=weights > 0)
  logits = logits.astype(jnp.float32)
  picked = jnp.take_along_axis(logits, batch['labels'], axis=-1)
  wanted = jnp.sum(picked * label_weights, axis=-1)
  if kind == 'softmax':
    log_z = jax.nn.logsumexp(logits, axis=-1)
    loss = log_z * label_weights.sum(-1) - wanted
  else:
    loss = jax.nn.softplus(logits).sum(-1) - wanted
  top = batch['labels'] == logits.argmax(-1, keepdims=True)
  return {
    'loss': jnp.sum(loss * weights),
    'z_loss': jnp.float32(0),
    'accuracy': jnp.sum((top * label_weights).sum(-1) * weights),
    'weight': jnp.sum(weights),
  }


def sown(collection: Mapping[str, Any]) -> dict[str, Array]:
  """{'encoder/layers_1/mlp/load': array} from what modules have sown."""
  leaves = jax.tree_util.tree_leaves_with_path(collection)
  # A sown value is a tuple of the module's calls: its last key is an index.
  return {'/'.join(k.key for k in path[:-1]): leaf for path, leaf in leaves}


def auxiliary(collection: Mapping[str, Any]) -> dict[str, Float[Array, '']]:
  """The layers' weighted auxiliary losses, by name, as means over layers.

  The mean is over the layers that have the loss. (T5X divides by all MoE
  layers, Expert Choice ones included: with a sparse encoder, its 0.01 weighs
  as 0.005 here; V-MoE adds the layers up, so that its weight times their
  number is the one here.)
  """
  by_name: dict[str, list[Array]] = {}
  for path, value in sown(collection).items():
    by_name.setdefault(path.rsplit('/', 1)[-1], []).append(value)
  return {name: jnp.mean(jnp.stack(v)) for name, v in by_name.items()}


def count(batch: Batch) -> tuple[str, int]:
  """What a batch has a model process, padding included, and how many."""
  if 'images' in batch:
    return 'images', batch['images'].shape[0]
  counted = 'encoder_input_tokens', 'decoder_target_tokens'
  return 'tokens', sum(batch[k].size for k in counted if k in batch)
