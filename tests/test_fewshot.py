# SPDX-License-Identifier: Apache-2.0
"""Few-shot evaluation against vmoe's numbers, and by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import golden
from upcycle import fewshot, ridge
from upcycle.models import moe, vit, vit_config

GOLDEN, META = golden('vmoe_train_bits')
HINT = (
  "Few-shot accuracies would not be comparable to vmoe's: mend "
  'upcycle/ridge.py, not tests/golden/vmoe_train_bits.npz.'
)
L2 = (2.0**-10, 1.0, 1024.0, 2.0**19)


def case(name):
  return GOLDEN[f'fewshot/N_ge_D/{name}']


@pytest.mark.parametrize('l2', L2)
def test_weights_and_accuracy_are_vmoes(l2):
  fit = ridge.ridge(case('x'), case('y'), 4)
  # The bias's eigenvalue is 4e5: vmoe's float32 loses digits at a small L2.
  np.testing.assert_allclose(
    ridge.weights(fit, l2),
    case(f'w_l2_{l2}'),
    rtol=1e-4,
    atol=5e-4 if l2 <= 1 else 1e-6,
    err_msg=HINT,
  )
  found = ridge.accuracy(fit, l2, case('x_test'), case('y_test'))
  assert found == pytest.approx(case(f'acc_l2_{l2}'), abs=1e-6), HINT


@pytest.mark.parametrize('l2', L2)
@pytest.mark.parametrize('images', [6, 12, 13, 40])
def test_weights_solve_the_normal_equations(images, l2):
  """With fewer images than the 13 weights of an output, and with more."""
  x, y = case('x')[:images].astype(np.float64), case('y')[:images]
  fit = ridge.ridge(case('x')[:images], y, 4)
  assert len(fit.eigenvalues) == min(images, 13)
  x = (x - x.mean(0)) / (x.std(0) + 1e-5)
  x = np.concatenate([x, np.full((images, 1), 100.0)], 1)
  target = np.where(y[:, None] == np.arange(4), 1.0, -1.0)
  w = np.linalg.solve(x.T @ x + l2 * np.eye(13), x.T @ target)
  np.testing.assert_allclose(ridge.weights(fit, l2), w, rtol=1e-5, atol=1e-6)


def test_accuracy_is_that_of_the_whitened_features():
  fit = ridge.ridge(case('x')[:6], case('y')[:6], 4)
  x = (case('x_test') - fit.mean) / fit.std
  x = np.pad(x, ((0, 0), (0, 1)), constant_values=100.0)
  guess = (x @ ridge.weights(fit, 1.0)).argmax(1)
  want = np.mean(guess == case('y_test'))
  assert ridge.accuracy(fit, 1.0, case('x_test'), case('y_test')) == want


def test_one_l2_for_all_sets():
  example = META['best_l2_example']
  results = [
    {(10, l2): acc for l2, acc in zip(example['l2'], accs, strict=True)}
    for accs in example['accs'].values()
  ]
  assert ridge.best_l2(results, 10, example['l2']) == example['best']
  # The mean accuracy is best at 1, the mean rank at 2.
  results = [{(1, 1): 1.0, (1, 2): 0.5}] + 2 * [{(1, 1): 0.1, (1, 2): 0.2}]
  assert ridge.best_l2(results, 1, (1, 2)) == 2


def test_draws_are_of_every_class_and_nested():
  labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], 9))
  five, two = ridge.draw(labels, 5, seed=3), ridge.draw(labels, 2, seed=3)
  assert np.bincount(labels[five]).tolist() == [5, 5, 5]
  assert np.bincount(labels[two]).tolist() == [2, 2, 2]
  assert set(two) < set(five) and len(set(five)) == 15
  assert set(ridge.draw(labels, 5, seed=4)) != set(five)
  assert len(ridge.draw(labels, 100, seed=3)) == 27


def test_images_become_what_the_model_takes():
  image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  same = fewshot.fit_image(image, 4, 3)
  np.testing.assert_allclose((same + 1) * 127.5, image, rtol=1e-5)
  assert same.dtype == np.float32
  grey = image[..., :1]
  for size, channels in ((4, 3), (8, 3), (8, 1)):
    found = fewshot.fit_image(grey, size, channels)
    assert found.shape == (size, size, channels)
    np.testing.assert_array_equal(found, found[..., :1] + 0 * found)
  assert fewshot.fit_image(image, 2, 1).shape == (2, 2, 1)
  # A triangle of twice the width: weights 3, 3, 1 of 7.
  edge = np.zeros((4, 4, 1), np.uint8)
  edge[:, 2:] = 255
  found = (fewshot.fit_image(edge, 2, 1) + 1) * 127.5
  np.testing.assert_allclose(found[0, :, 0], [255 / 7, 255 * 6 / 7], atol=1)
  for value, want in ((0, -1.0), (255, 1.0)):
    flat = np.full((5, 7, 3), value, np.uint8)
    assert (fewshot.fit_image(flat, 4, 3) == want).all()


def test_the_middle_of_a_larger_image():
  image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
  found = fewshot.crop_image(image, 4, 3, resize=8)
  want = fewshot.fit_image(image, 8, 3)[2:6, 2:6]
  np.testing.assert_array_equal(found, want)
  assert fewshot.crop_image(image, 224, 3).shape == (224, 224, 3)
  with pytest.raises(ValueError, match='takes 384 pixels of 256'):
    fewshot.crop_image(image, 384, 3)


def test_the_l2_of_vmoe():
  sweep = fewshot.l2_sweep()
  assert len(sweep) == 30 and set(L2) < set(sweep)


@dataclasses.dataclass(frozen=True)
class Config:
  image_size: int = 4
  channels: int = 1
  num_classes: int | None = 3


@dataclasses.dataclass(frozen=True)
class Model:
  """Pixels times a matrix; a row that is not valid poisons the batch."""

  config: Config = Config()

  def features(self):
    return Model(dataclasses.replace(self.config, num_classes=None))

  def apply(self, variables, images, *, valid):
    TRACED.append(images.shape)
    assert self.config.num_classes is None
    x = images.reshape(len(images), -1) @ variables['params']['kernel']
    padding = jnp.any((images != 0).any((1, 2, 3)) & ~valid)
    return jnp.where(padding, jnp.nan, x).astype(jnp.bfloat16)


TRACED = []
PARAMS = {'kernel': np.eye(16, dtype=np.float32)}


TINY = vit_config.ViTConfig(
  image_size=8,
  patch_size=4,
  channels=1,
  width=16,
  depth=2,
  mlp_dim=16,
  num_heads=2,
  num_classes=5,
)


class Source(list):
  num_classes = 3
  labels = None


def source(count, seed, noise=40, size=4):
  """Images of three levels of grey in one corner, and noise."""
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % 3
  images = rng.integers(0, noise, (count, size, size, 1))
  images[:, : size // 2, : size // 2] += 80 * labels[:, None, None, None]
  return Source(
    {'image': image.astype(np.uint8), 'labels': np.array([label])}
    for image, label in zip(images, labels, strict=True)
  )


def test_a_model_is_evaluated_on_several_sets():
  sets = {
    'easy': (source(60, 0), source(31, 1)),
    'hard': (source(60, 2, noise=176), source(50, 3, noise=176)),
  }
  # No number of images is a multiple of the batch.
  evaluate = fewshot.Fewshot(sets, shots=(1, 7), l2=(1.0, 1024.0), batch_size=8)
  TRACED.clear()
  values = evaluate(Model(), PARAMS)
  assert evaluate(Model(), PARAMS).items() >= {
    (k, v) for k, v in values.items() if 'seconds' not in k
  }
  assert TRACED == [(8, 4, 4, 1)], 'features are compiled once'
  assert values.keys() == {
    '1shot_l2',
    '7shot_l2',
    *(f'{n}shot/{name}' for n in (1, 7) for name in sets),
    'evaluation_seconds',
  }
  assert values['1shot/hard'] < values['7shot/hard'] < values['7shot/easy']


@pytest.mark.parametrize('seeds', [2, 5])
def test_the_mean_is_over_the_draws_and_the_whole_test_set(seeds):
  train, test = source(60, 2, noise=176), source(50, 3, noise=176)
  evaluate = fewshot.Fewshot(
    {'s': (train, test)}, shots=(2,), seeds=seeds, batch_size=16
  )
  values = evaluate(Model(), PARAMS)
  pixels, labels = zip(
    *(
      (
        np.array([fewshot.fit_image(x['image'], 4, 1).ravel() for x in s]),
        np.array([x['labels'][0] for x in s]),
      )
      for s in (train, test)
    ),
    strict=True,
  )
  pixels = [np.asarray(jnp.bfloat16(x), np.float32) for x in pixels]
  accuracies = []
  for seed in range(seeds):
    at = ridge.draw(labels[0], 2, seed)
    fit = ridge.ridge(pixels[0][at], labels[0][at], 3)
    accuracies.append(ridge.accuracy(fit, 1024.0, pixels[1], labels[1]))
  assert len(set(accuracies)) > 1
  assert values['2shot/s'] == pytest.approx(np.mean(accuracies), abs=1e-9)


def test_part_of_a_test_set_is_always_the_same_part():
  sets = {'s': (source(30, 0, noise=176), source(40, 1, noise=176))}
  options = {'shots': (1,), 'max_test': 7, 'batch_size': 16}
  first, second = (
    fewshot.Fewshot(sets, **options)(Model(), PARAMS)['1shot/s']
    for _ in range(2)
  )
  assert first == second
  assert first * 35 == pytest.approx(round(first * 35))


class Watched(Source):
  """A source that knows its labels, and which images were read."""

  def __init__(self, rows):
    super().__init__(rows)
    self.read = []
    self.labels = lambda: [row['labels'] for row in rows]

  def __getitem__(self, i):
    self.read.append(i)
    return super().__getitem__(i)


def test_only_images_that_are_used_are_read():
  train, test = Watched(source(90, 0)), Watched(source(40, 1))
  evaluate = fewshot.Fewshot({'s': (train, test)}, shots=(2,), max_test=7)
  evaluate(Model(), PARAMS)
  drawn = [ridge.draw(np.arange(90) % 3, 2, seed) for seed in range(5)]
  assert sorted(train.read) == np.unique(drawn).tolist()
  assert len(set(test.read)) == len(test.read) == 7
  assert set(test.read) != set(range(7)), 'the first are of one class'


def test_batches_mix_the_classes(monkeypatch):
  """Where experts choose among images, and images are sorted by class."""
  config = dataclasses.replace(TINY, moe=moe.MoeConfig(num_experts=2))
  model = vit.ViT(config)
  params = jax.jit(model.init)(jax.random.key(0), **model.example_inputs())
  apply, batches = fewshot._apply, []

  def watch(model, params, images, valid):
    levels = images[:, :4, :4].mean((1, 2, 3))
    batches.append(np.digitize(levels, [-0.55, 0.1])[valid])
    return apply(model, params, images, valid)

  monkeypatch.setattr(fewshot, '_apply', watch)
  sets = [
    Source(sorted(source(48, seed, size=8), key=lambda x: int(x['labels'][0])))
    for seed in (0, 1)
  ]
  evaluate = fewshot.Fewshot({'s': tuple(sets)}, shots=(16,), batch_size=8)
  assert evaluate(model, params['params'])['16shot/s'] > 0.9
  assert len(batches) == 12
  assert all(len(set(batch.tolist())) > 1 for batch in batches)


@pytest.mark.parametrize('channels', [2, 4])
def test_images_that_are_neither_grey_nor_rgb(channels):
  train, test = source(9, 0), source(9, 1)
  test[4]['image'] = np.zeros((4, 4, channels), np.uint8)
  message = rf"set 's', image 4: it is grey or RGB, .* not {channels}\."
  with pytest.raises(ValueError, match=message):
    fewshot.Fewshot({'s': (train, test)})(Model(), PARAMS)


def test_features_that_are_not_finite():
  kernel = PARAMS['kernel'].copy()
  kernel[3, 3] = np.nan
  sets = {'s': (source(9, 0), source(9, 1))}
  with pytest.raises(FloatingPointError, match=r"'s': .* of 9 of 9 images"):
    fewshot.Fewshot(sets)(Model(), {'kernel': kernel})


def test_refuses_images_without_one_label_and_unseen_classes():
  train, test = source(9, 0), source(9, 1)
  several = Source([*test[:2], {**test[2], 'labels': np.array([1, 2])}])
  for labels in ([1, 2], [], [3], [-1]):
    several[2]['labels'] = np.array(labels, np.int64)
    with pytest.raises(ValueError, match=r"'s': .*0 \.\.\. 2; of 3 .*\[2\]"):
      fewshot.Fewshot({'s': (train, several)})(Model(), PARAMS)
  with pytest.raises(ValueError, match=r"set 's'.*of 0 images"):
    fewshot.Fewshot({'s': (Source(), test)})(Model(), PARAMS)
  two = Source(x for x in train if x['labels'][0] != 1)
  with pytest.raises(ValueError, match=r"set 's': classes \[1\] have test"):
    fewshot.Fewshot({'s': (two, test)})(Model(), PARAMS)


@pytest.mark.parametrize(
  'change',
  [{'sets': {}}, {'shots': ()}, {'shots': (0,)}, {'l2': (0.0,)}, {'seeds': 0}],
)
def test_refuses_to_evaluate_nothing(change):
  sets = {'s': (source(9, 0), source(9, 1))}
  with pytest.raises(ValueError, match='evaluation of nothing'):
    fewshot.Fewshot(**{'sets': sets} | change)


def test_on_a_vision_transformer():
  model = vit.ViT(TINY)
  params = jax.jit(model.init)(jax.random.key(0), **model.example_inputs())
  sets = {'s': (source(30, 0), source(30, 1))}
  evaluate = fewshot.Fewshot(sets, shots=(10,), l2=(1.0,), batch_size=32)
  assert evaluate(model, params['params'])['10shot/s'] == 1.0
