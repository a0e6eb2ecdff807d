# SPDX-License-Identifier: Apache-2.0
"""Batches of images: order, shards, resuming, mixup, sources, bad input."""

import dataclasses
import itertools
import json
import threading
import time

import numpy as np
import pytest

from upcycle.data import augment, image_parts, images, rand_augment

COUNT, CLASSES = 21, 5


def source(**changes) -> images.Source:
  """Image i is of value i, its label i modulo CLASSES; or as `changes` say."""
  pixels = [np.full((4, 4, 1), i, np.uint8) for i in range(COUNT)]
  labels = [np.array([i % CLASSES]) for i in range(COUNT)]
  for i, image in changes.get('pixels', {}).items():
    pixels[i] = image
  for i, label in changes.get('labels', {}).items():
    labels[i] = np.array(label, np.int64)
  return images.Source(
    'tiny',
    CLASSES,
    COUNT,
    lambda i: {'image': pixels[i], 'labels': labels[i]},
    lambda: labels,
    changes.get('digest', ''),
  )


def test_parts_are_all_images_once():
  whole = source(digest='d')
  parts = [images.part(whole, 4), images.part(whole, 4, others=True)]
  seen = [[int(x['image'][0, 0, 0]) for x in part] for part in parts]
  assert seen[0] == list(range(0, COUNT, 4))
  assert sorted(seen[0] + seen[1]) == list(range(COUNT))
  for part, of in zip(parts, seen, strict=True):
    assert [int(label[0]) for label in part.labels()] == [
      i % CLASSES for i in of
    ]
  assert len({whole.digest, *(part.digest for part in parts)}) == 3
  with pytest.raises(ValueError, match='every 1-th image leaves none'):
    images.part(whole, 1, others=True)


def noise(image, rng):
  """Another picture for every use."""
  return image + rng.integers(0, 50, image.shape).astype(np.uint8)


def make(data=None, transforms=(augment.value_range,), **arguments):
  arguments = {'batch_size': 6, 'shard_index': 0, 'shard_count': 1} | arguments
  data = source() if data is None else data
  return images.batches(data, transforms, **arguments)


def take(dataset, count=None):
  return list(itertools.islice(iter(dataset), count))


def same(xs, ys):
  assert len(xs) == len(ys)
  for x, y in zip(xs, ys, strict=True):
    assert x.keys() == y.keys()
    for name in x:
      np.testing.assert_array_equal(x[name], y[name], name)


def values(batch) -> list[int]:
  """Which image each row with a weight is."""
  grey = np.rint((batch['images'][:, 0, 0, 0] + 1) * 127.5).astype(int)
  return grey[batch['weights'] > 0].tolist()


def test_a_batch():
  (batch,) = take(make(shuffle=False), 1)
  kinds = {k: (v.dtype.name, v.shape) for k, v in batch.items()}
  assert kinds == {
    'images': ('float32', (6, 4, 4, 1)),
    'labels': ('int32', (6, 1)),
    'label_weights': ('float32', (6, 1)),
    'weights': ('float32', (6,)),
  }
  assert values(batch) == [0, 1, 2, 3, 4, 5]
  assert batch['labels'][:, 0].tolist() == [0, 1, 2, 3, 4, 0]
  assert batch['label_weights'].min() == batch['weights'].min() == 1


def test_every_epoch_has_each_image_once_in_its_own_order():
  seen = [v for batch in take(make(), 7) for v in values(batch)]
  first, second = seen[:COUNT], seen[COUNT : 2 * COUNT]
  assert sorted(first) == sorted(second) == list(range(COUNT))
  assert first != second != sorted(second)
  assert seen[:6] != values(take(make(seed=1), 1)[0])


def test_every_use_of_an_image_has_its_own_random_numbers():
  transforms = noise, augment.value_range
  found = take(make(transforms=transforms, shuffle=False, batch_size=COUNT), 2)
  assert not np.array_equal(found[0]['images'], found[1]['images'])
  rows = found[0]['images']
  assert len({(row - row.min()).tobytes() for row in rows}) == COUNT


@pytest.mark.parametrize('mixup', [None, 0.4])
def test_another_seed_draws_other_numbers(mixup):
  """Beside the order: of the transforms, and of mixup."""
  transforms = (augment.value_range,) if mixup else (noise, augment.value_range)
  first, second = (
    take(make(None, transforms, shuffle=False, mixup=mixup, seed=s), 1)[0]
    for s in (1, 2)
  )
  assert first['labels'].tolist() == second['labels'].tolist()
  assert not np.array_equal(first['images'], second['images'])


def test_no_two_uses_draw_the_same():
  """What order and mixup draw first is not what a transform does."""
  orders, shares = [], []

  def watch(image, rng):
    state = rng.bit_generator.state
    orders.append(rng.permutation(np.arange(COUNT, dtype=np.uint32)).tolist())
    rng.bit_generator.state = state
    shares.append(rng.beta(0.5, 0.5))
    return image

  transforms = watch, augment.value_range
  order = take(make(None, transforms, batch_size=COUNT, repeat=False), 1)
  assert values(order[0]) not in orders
  (mixed,) = take(make(None, transforms, mixup=0.5), 1)
  share = mixed['label_weights'][0, 0]
  assert len(shares) > 6 and not np.isclose(shares, share, rtol=1e-4).any()


@pytest.mark.parametrize('mixup', [None, 0.4])
def test_the_stream_does_not_depend_on_the_processes(mixup):
  arguments = {'mixup': mixup, 'batch_size': 8}
  transforms = noise, augment.value_range
  whole = take(make(None, transforms, **arguments), 4)
  parts = [
    take(make(None, transforms, shard_index=i, shard_count=4, **arguments), 4)
    for i in range(4)
  ]
  for i, part in enumerate(parts):
    same(part, [{k: v[i::4] for k, v in b.items()} for b in whole])


@pytest.mark.parametrize('threads', [1, 3])
def test_a_resumed_iterator_goes_on_exactly(threads):
  dataset = make(None, (noise, augment.value_range), threads=threads, mixup=0.5)
  expected = take(dataset, 7)
  iterator = iter(dataset)
  for _ in range(3):
    next(iterator)
  state = iterator.get_state()
  again = iter(make(None, (noise, augment.value_range), mixup=0.5))
  again.set_state(state)
  same(list(itertools.islice(again, 4)), expected[3:])


def test_threads_share_a_batch():
  barrier = threading.Barrier(3, timeout=20)

  def meet(image, rng):
    del rng
    if threading.current_thread() is not threading.main_thread():
      barrier.wait()
    return image

  transforms = meet, augment.value_range
  plain = take(make(batch_size=3), 4)
  same(take(make(None, transforms, threads=3, batch_size=3), 4), plain)


def test_few_batches_are_held():
  read = []
  data = source()
  counted = images.Source(
    'tiny', CLASSES, COUNT, lambda i: read.append(i) or data[i]
  )
  iterator = iter(make(counted, threads=16))
  next(iterator)
  time.sleep(0.3)
  assert len(read) <= 1 + 3 * 6


@pytest.mark.parametrize('changes', [{'digest': 'b'}, {'length': COUNT - 1}])
def test_other_images_are_not_gone_on_with(changes):
  first = source(digest='a')
  iterator = iter(make(first))
  next(iterator)
  state = json.loads(json.dumps(iterator.get_state()))
  iter(make(source(digest='a'))).set_state(state)
  other = iter(make(dataclasses.replace(first, **changes)))
  with pytest.raises(ValueError, match=r'tiny is not what the run began with'):
    other.set_state(state)


@pytest.mark.parametrize('count', [1, 2, 6])
def test_evaluation_has_every_image_once(count):
  rows = []
  for i in range(count):
    dataset = make(
      repeat=False, shuffle=False, shard_index=i, shard_count=count
    )
    found = take(dataset)
    assert len(found) == 4, 'as many batches for all processes'
    assert {len(b['images']) for b in found} == {6 // count}
    for batch in found:
      padding = batch['weights'] == 0
      assert not batch['label_weights'][padding].any()
      rows += values(batch)
    same(found, take(dataset))
  assert sorted(rows) == list(range(COUNT))


def test_labels_of_a_multi_label_source():
  data = source(labels={1: [2, 4, 0], 2: []})
  (batch,) = take(make(data, num_labels=3, shuffle=False, batch_size=3), 1)
  assert batch['labels'].tolist() == [[0, 0, 0], [2, 4, 0], [0, 0, 0]]
  assert batch['label_weights'].tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_mixup_mixes_pairs():
  (plain,) = take(make(shuffle=False), 1)
  (mixed,) = take(make(shuffle=False, mixup=0.5), 1)
  a, b = mixed['label_weights'].T
  np.testing.assert_allclose(a + b, 1, rtol=1e-6)
  assert 0 < a[0] < 1 and (a == a[0]).all()
  other = np.roll(plain['images'], 3, 0)
  np.testing.assert_allclose(
    mixed['images'], a[0] * plain['images'] + b[0] * other, atol=1e-6
  )
  labels = plain['labels'][:, 0]
  assert mixed['labels'].tolist() == np.stack(
    [labels, np.roll(labels, 3)], 1
  ).tolist()  # fmt: skip
  shares = [b['label_weights'][0, 0] for b in take(make(mixup=0.5), 50)]
  assert len(set(shares)) == 50
  assert 0.3 < np.mean(shares) < 0.7


FLOATS = np.tile(np.float32([0, 255]), 8).reshape(4, 4, 1)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'batch_size': 5, 'mixup': 0.2}, 'an even number of rows'),
    ({'mixup': 0.0}, 'a positive alpha'),
    ({'mixup': 0.2, 'repeat': False}, 'repeat=True'),
    ({'num_classes': 4}, 'tiny has 5 classes, the model only 4'),
    ({'batch_size': 5, 'shard_count': 2}, 'cannot be shared by 2 processes'),
    ({'transforms': ()}, 'make uint8, not float32: .* `value_range`'),
    (
      {
        'data': source(pixels=dict.fromkeys(range(COUNT), FLOATS)),
        'transforms': (),
      },
      'make values from 0 to 255, not from -1 to 1: .* `value_range`',
    ),
    (
      {'transforms': (augment.value_range, rand_augment.rand_augment)},
      r'tiny, image \d+: rand_augment takes uint8.* before value_range',
    ),
    (
      {'data': images.Source('none', 1, 0, lambda i: {})},
      'none holds no image',
    ),
  ],
)
def test_arguments_that_do_not_fit(arguments, message):
  with pytest.raises(ValueError, match=message):
    make(**arguments)


NAN = np.full((4, 4, 1), np.nan, np.float32)
INF = np.full((4, 4, 1), np.inf, np.float32)
LARGE, RGB = np.zeros((5, 4, 1), np.uint8), np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'pixels': {4: NAN, 9: INF}}, r'images \[4, 9\] have pixels that are NaN'),
    (
      {'pixels': {4: LARGE}},
      r'images \[4\] are not \(4, 4, 1\) like the first',
    ),
    ({'pixels': {4: RGB}}, r'images \[4\] are not .*mind grey and RGB'),
    (
      {'labels': {3: [5], 8: [-1]}},
      r'images \[3, 8\] have labels outside 0 .* 4',
    ),
    ({'labels': {3: [1, 2]}}, r'images \[3\] have more than num_labels 1'),
  ],
)
def test_bad_images_are_named(changes, message):
  dataset = make(source(**changes), shuffle=False, batch_size=COUNT)
  with pytest.raises(ValueError, match=f'tiny: {message}'):
    take(dataset, 1)


def test_a_transform_that_fails_names_the_image():
  crop = lambda image, rng: augment.central_crop(image, rng, size=4)  # noqa: E731
  data = source(pixels={7: np.zeros((4, 3, 1), np.uint8)})
  dataset = make(data, (crop, augment.value_range), shuffle=False, batch_size=8)
  with pytest.raises(ValueError, match='tiny, image 7: central_crop to 4 of'):
    take(dataset, 1)


def test_parts_of_a_source_are_disjoint_and_of_all_classes():
  data = source()
  first, rest = (
    image_parts.part(data, *ends) for ends in ((0.0, 0.7), (0.7, 1.0))
  )
  found = [[int(row['image'].max()) for row in part] for part in (first, rest)]
  assert [len(x) for x in found] == [15, 6]
  assert sorted(found[0] + found[1]) == list(range(COUNT))
  # Not the first ones, which may all be of one class.
  assert found[0] != list(range(15))
  assert first.num_classes == rest.num_classes == CLASSES
  assert list(image_parts.part(data)) == list(data)
  for part in (first, rest):
    assert list(part.labels()) == [row['labels'] for row in part]
  assert first.digest != rest.digest
  for ends in ((0.5, 0.5), (0.0, 1.1), (-0.1, 0.5)):
    with pytest.raises(ValueError, match=r'No part .* tiny: 0 <= first <'):
      image_parts.part(data, *ends)
