# SPDX-License-Identifier: Apache-2.0
"""What makes any gin file of ViT tiny: bindings, images, a dense checkpoint."""

import dataclasses
import io
import types
import warnings

import jax
import numpy as np

from upcycle import initialize, optim
from upcycle.checkpoints import state as run_state
from upcycle.data import augment, image_arrays
from upcycle.data.image_sources import Example
from upcycle.models import moe, vit

CLASSES, EXPERTS = 5, 4
SETS = {
  'glyphs': ('train', 'validation'),
  'mnist': ('train', 'test'),
  'digits': ('train', 'test'),
  'emoji': ('train', 'test'),
  'glyphs_held_out': ('train', 'test'),
}
SIZES = {
  'patch_size': 4,
  'channels': 1,
  'width': 16,
  'depth': 2,
  'mlp_dim': 24,
  'num_heads': 2,
}


def files(folder) -> dict[str, str]:
  """Local sets of images, and runs of a dense and a sparse ViT, with Adam."""
  for name in SETS:
    local(folder, name, pictures())
  config = vit.preset('vit_s16', image_size=8, num_classes=CLASSES, **SIZES)
  experts = moe.MoeConfig(num_experts=EXPERTS, group_size=None)
  sparse = dataclasses.replace(config, moe=experts, moe_layers=moe.last_half)
  return {
    'data': str(folder),
    'dense': save(folder / 'dense', config),
    'sparse': save(folder / 'sparse', sparse),
  }


def local(folder, name: str, pixels: np.ndarray) -> None:
  """Prepares a local set of the same images in all splits."""
  examples = [Example(str(i), x, i % CLASSES) for i, x in enumerate(pixels)]
  image_arrays.write(
    folder / 'images' / name,
    dict.fromkeys(SETS[name], examples),
    [f'class {i}' for i in range(CLASSES)],
    {},
  )


def pictures(count: int = 4 * CLASSES) -> np.ndarray:
  """Noise, uint8 [N, 8, 8, 1]."""
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, 8, 8, 1), np.uint8)


def save(folder, config: vit.ViTConfig) -> str:
  """Saves a model of random numbers, its head too, as of step 1000."""
  rng = np.random.default_rng(0)
  shapes = initialize.param_shapes(vit.ViT(config))
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), shapes
  )
  opt_state = jax.jit(optim.adamw(0.1).init)(params)
  state = initialize.TrainState(np.int32(1000), params, opt_state)
  with run_state.manager(folder) as saved:
    run_state.save(saved, 1000, state, {}, {})
  return str(folder)


class Records(list):
  """Stands in for the examples of any data set of TFDS, as they are stored."""

  def __init__(self):
    for i, pixels in enumerate(pictures()):
      png = io.BytesIO()
      augment.to_pil(pixels).save(png, 'png')
      self.append({'image': png.getvalue(), 'label': i % CLASSES})


def fake_tfds(monkeypatch, records: Records | None = None) -> list:
  """Puts one set in place of all of TFDS; returns the (name, split) asked."""
  with warnings.catch_warnings():  # its own
    warnings.simplefilter('ignore')
    import tensorflow_datasets
    from tensorflow_datasets import features

  asked, records = [], Records() if records is None else records
  records.dataset_info = types.SimpleNamespace(
    features={
      'image': features.Image(shape=(None, None, 1)),
      'label': features.ClassLabel(num_classes=CLASSES),
    }
  )

  def builder(name, *, data_dir):
    def as_data_source(split, *, decoders):
      asked.append((name, split))
      return records

    return types.SimpleNamespace(as_data_source=as_data_source)

  monkeypatch.setattr(tensorflow_datasets, 'builder', builder)
  return asked


def bindings(config_text: str, paths: dict[str, str], model_dir) -> list[str]:
  """Bindings that make the run of a gin file two tiny steps long."""
  lines = [f'vit.preset.{name} = {value}' for name, value in SIZES.items()]
  lines += [
    f"MODEL_DIR = '{model_dir}'",
    f'vit.preset.num_classes = {CLASSES}',
    f'images.batches.num_classes = {CLASSES}',
    'images.batches.batch_size = 4',
    'images.batches.threads = 1',
    'train.train.num_steps = 2',
    'train.train.eval_batches = 1',
    'train.train.log_every = 1',
    'train.train.eval_every = 2',
  ]
  table = {
    'DENSE_CHECKPOINT': f"DENSE_CHECKPOINT = '{paths['dense']}'",
    'vit_finetune.gin': f"CHECKPOINT = '{paths['sparse']}'",
    'depth_tile': 'vit.preset.depth = 3',
    'vit_moe.gin': f'NUM_EXPERTS = {EXPERTS}',
    'vit_laptop.gin': f"DATA = '{paths['data']}'",
    'vit_imagenet21k.gin': 'augment.inception_crop.size = 8',
    'vit_imagenet.gin': 'augment.inception_crop.size = 12',
    'fewshot_vit.gin': 'fewshot.crop_image.resize = 10',
    'fewshot': 'fewshot.Fewshot.batch_size = 32',
  }
  lines += [line for name, line in table.items() if name in config_text]
  if 'vit_imagenet21k.gin' in config_text:
    lines += [
      'augment.resize_small.size = 10',
      'augment.central_crop.size = 8',
    ]
  if 'vit_finetune.gin' in config_text:
    # Positions are resized.
    return [*lines, 'IMAGE_SIZE = 12', 'optim.cosine.warmup = 1']
  return [*lines, 'vit.preset.image_size = 8']
