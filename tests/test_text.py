# SPDX-License-Identifier: Apache-2.0
"""Span corruption against T5's own numbers; batches, shards and resuming."""

import itertools
import json
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from tests import tiny_text
from tests.conftest import golden
from upcycle.data import batches, denoising, text, tokenized, vocabulary

GOLDEN, _ = golden('t5_span_corruption')
EXPLAIN = 'differs from T5: see tests/golden/README.md, do not regenerate.'
LENGTH = 48  # inputs of the tiny batches: three spans


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return tiny_text.corpus(tmp_path_factory.mktemp('data') / 'tiny')


def make(corpus, **arguments):
  arguments = {'batch_size': 8, 'inputs_length': LENGTH} | arguments
  sharding = {'shard_index': 0, 'shard_count': 1}
  return text.span_corruption(corpus, **(sharding | arguments))


def take(dataset, count=None):
  return list(itertools.islice(iter(dataset), count))


def same(xs, ys):
  assert len(xs) == len(ys)
  for x, y in zip(xs, ys, strict=True):
    assert x.keys() == y.keys()
    for name in x:
      np.testing.assert_array_equal(x[name], y[name], name)


def rows(found, pieces=tiny_text.PIECES):
  """The raw tokens of every row that has any, as tuples."""
  return [
    tuple(denoising.reassemble(i, t, pieces))
    for batch in found
    for i, t in zip(
      batch['encoder_input_tokens'],
      batch['decoder_target_tokens'],
      strict=True,
    )
    if t.any()
  ]


@pytest.mark.parametrize(
  ('inputs', 'raw', 'targets'),
  [(64, 70, 14), (128, 141, 29), (256, 284, 58), (512, 568, 114)],
)
def test_lengths_are_those_of_t5(inputs, raw, targets):
  assert denoising.lengths(inputs) == (raw, inputs, targets)


def test_lengths_agree_with_t5_wherever_it_masks_a_span():
  for inputs, raw, targets in GOLDEN['lengths']:
    if targets > 2:  # for 8 and 9 T5 expects no span, and then masks one
      found = denoising.lengths(int(inputs))
      assert (found.raw, found.targets) == (raw, targets), EXPLAIN


def test_corruption_agrees_with_t5():
  cases = {name.split('/')[0] for name in GOLDEN if '/' in name}
  assert len(cases) == 8
  for case in cases:
    found = denoising.corrupt(
      GOLDEN[f'{case}/tokens'], GOLDEN[f'{case}/mask'], 2148
    )
    for side in ('inputs', 'targets'):
      expected = [*GOLDEN[f'{case}/{side}'], vocabulary.EOS]
      np.testing.assert_array_equal(found[side], expected, EXPLAIN)


@given(
  length=st.integers(1, 700),
  density=st.floats(0.05, 0.6),
  span=st.floats(1, 8),
  seed=st.integers(0, 2**32 - 1),
)
def test_corruption_can_be_undone(length, density, span, seed):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, 1000, length)
  mask = denoising.noise_mask(length, rng, density, span)
  masked, spans = denoising.span_counts(length, density, span)
  if length > 1:
    assert mask.sum() == masked
    assert not mask[0]
    assert mask[-1]
    assert np.sum(mask[1:] & ~mask[:-1]) == spans
  example = denoising.corrupt(tokens, mask, 2000)
  padded = {side: np.pad(ids, (0, 3)) for side, ids in example.items()}
  np.testing.assert_array_equal(
    denoising.reassemble(**padded, pieces=1000), tokens
  )
  if length > 1:
    expected = denoising.corrupted_length(length, density, span)
    assert (len(example['inputs']), len(example['targets'])) == expected[1:]


def test_masks_are_spread_evenly():
  masks = [
    denoising.noise_mask(140, np.random.default_rng(i)) for i in range(3000)
  ]
  share = np.mean(masks, axis=0)
  assert abs(share[20:120] - 0.15).max() < 0.04


def test_reassemble_refuses_foreign_targets():
  tokens = np.arange(3, 43)
  one, two = (
    denoising.corrupt(
      tokens, denoising.noise_mask(40, np.random.default_rng(0), d), 200
    )
    for d in (0.15, 0.5)
  )
  with pytest.raises(ValueError, match='do not agree'):
    denoising.reassemble(one['inputs'], two['targets'], 100)


def test_a_batch_is_full_and_has_the_names_of_t5x(corpus):
  need = denoising.lengths(LENGTH)
  batch = take(make(corpus), 1)[0]
  assert {name: (x.shape, str(x.dtype)) for name, x in batch.items()} == {
    'encoder_input_tokens': ((8, LENGTH), 'int32'),
    'decoder_target_tokens': ((8, need.targets), 'int32'),
    'decoder_input_tokens': ((8, need.targets), 'int32'),
    'decoder_loss_weights': ((8, need.targets), 'float32'),
  }
  assert batch['encoder_input_tokens'].all()
  assert (batch['decoder_loss_weights'] == 1).all()
  shifted = batch['decoder_input_tokens']
  assert not shifted[:, 0].any()
  np.testing.assert_array_equal(
    shifted[:, 1:], batch['decoder_target_tokens'][:, :-1]
  )
  words = vocabulary.load(corpus)
  assert '<extra_id_0>' in words.decode(batch['encoder_input_tokens'][0])


def test_an_epoch_holds_every_text_once_and_the_next_another_order(corpus):
  tokens = tokenized.load(corpus, 'train')
  raw = denoising.lengths(LENGTH).raw
  count = len(tokens.ids) // raw
  expected = {tuple(tokens.ids[i * raw : (i + 1) * raw]) for i in range(count)}
  stream = take(make(corpus, batch_size=1), 2 * count)
  first, second = rows(stream[:count]), rows(stream[count:])
  assert set(first) == set(second) == expected
  assert len(first) == count
  assert first != second
  masks = [{x['encoder_input_tokens'].tobytes() for x in stream[:count]}]
  masks += [{x['encoder_input_tokens'].tobytes() for x in stream[count:]}]
  assert len(masks[0] & masks[1]) < count / 10


def test_the_seed_alone_decides(corpus):
  same(take(make(corpus, seed=3), 5), take(make(corpus, seed=3), 5))
  one, two = (take(make(corpus, seed=s), 1)[0] for s in (3, 4))
  assert (one['encoder_input_tokens'] != two['encoder_input_tokens']).any()


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('steps', [0, 1, 7, 40])
def test_a_resumed_stream_goes_on_exactly(corpus, packed, steps):
  whole = take(make(corpus, packed=packed), steps + 6)
  killed = iter(make(corpus, packed=packed))
  for _ in range(steps):
    next(killed)
  state = json.loads(json.dumps(killed.get_state()))
  del killed
  resumed = iter(make(corpus, packed=packed))
  next(resumed)  # a state may also come late
  resumed.set_state(state)
  same(take(resumed, 6), whole[steps:])


@pytest.mark.parametrize('count', [2, 4])
@pytest.mark.parametrize('repeat', [True, False])
def test_processes_share_one_stream(corpus, count, repeat):
  steps = 60 if repeat else None  # across epochs
  options = {'repeat': repeat, 'split': 'validation'}
  whole = take(make(corpus, **options), steps)
  parts = [
    take(make(corpus, shard_index=i, shard_count=count, **options), steps)
    for i in range(count)
  ]
  for i, part in enumerate(parts):
    same(part, [{k: x[i::count] for k, x in b.items()} for b in whole])


def test_evaluation_sees_every_text_once_and_always_the_same(corpus):
  options = {'split': 'validation', 'repeat': False, 'shuffle': False}
  found = take(make(corpus, **options))
  same(found, take(make(corpus, **options)))
  raw, _, targets = denoising.lengths(LENGTH)
  tokens = tokenized.load(corpus, 'validation').ids
  count = len(tokens) // raw
  assert count % 8, 'the last batch should be partial'
  flat = np.concatenate(rows(found))
  np.testing.assert_array_equal(flat, tokens[: count * raw])
  assert all(len(x['encoder_input_tokens']) == 8 for x in found)
  assert sum(x['decoder_loss_weights'].sum() for x in found) == count * targets


def segments(batch, side):
  """{(row, segment): ids} of a packed batch."""
  ids = {'encoder': 'input', 'decoder': 'target'}[side]
  tokens, which = batch[f'{side}_{ids}_tokens'], batch[f'{side}_segment_ids']
  return {
    (r, s): tokens[r][which[r] == s]
    for r in range(len(tokens))
    for s in range(1, which[r].max() + 1)
  }


def check_packing(batch):
  for side, ids in (('encoder', 'input'), ('decoder', 'target')):
    tokens = batch[f'{side}_{ids}_tokens']
    which, where = batch[f'{side}_segment_ids'], batch[f'{side}_positions']
    np.testing.assert_array_equal(which > 0, tokens > 0)
    for (row, segment), found in segments(batch, side).items():
      assert found[-1] == vocabulary.EOS
      np.testing.assert_array_equal(
        where[row][which[row] == segment], np.arange(len(found))
      )
  shifted, targets = batch['decoder_input_tokens'], segments(batch, 'decoder')
  for (row, segment), found in targets.items():
    mine = shifted[row][batch['decoder_segment_ids'][row] == segment]
    np.testing.assert_array_equal(mine, [0, *found[:-1]])
  np.testing.assert_array_equal(
    batch['decoder_loss_weights'], batch['decoder_target_tokens'] > 0
  )


def test_packed_rows_keep_documents_apart(corpus):
  found = take(
    make(corpus, inputs_length=96, packed=True, repeat=False, shuffle=False)
  )
  pieces = []
  for batch in found:
    check_packing(batch)
    inputs, targets = segments(batch, 'encoder'), segments(batch, 'decoder')
    assert inputs.keys() == targets.keys()
    pieces += [
      denoising.reassemble(inputs[key], targets[key], tiny_text.PIECES)
      for key in inputs
    ]
  tokens = tokenized.load(corpus, 'train')
  raw = denoising.lengths(96).raw
  expected = [
    tuple(document[i : i + raw])
    for document in np.split(tokens.ids, tokens.ends[:-1])
    for i in range(0, len(document), raw)
  ]
  assert sorted(map(tuple, pieces)) == sorted(expected)
  assert max(len(segments(b, 'encoder')) for b in found) > 8


@pytest.fixture
def pairs(tmp_path):
  path = tmp_path / 'pairs.jsonl'
  texts = tiny_text.documents(30, sentences=3, seed=1)
  rows = [{'inputs': x, 'targets': x.split()[0]} for x in texts]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path, rows


@pytest.mark.parametrize('packed', [False, True])
def test_text_pairs(corpus, pairs, packed):
  path, expected = pairs
  dataset = text.text_pairs(
    path,
    corpus,
    batch_size=4,
    inputs_length=200,
    targets_length=40,
    packed=packed,
    repeat=False,
    shard_index=0,
    shard_count=1,
  )
  found = take(dataset)
  words = vocabulary.load(corpus)
  if packed:
    assert len(found) < 30 / 4
    for batch in found:
      check_packing(batch)
    both = [(segments(b, 'encoder'), segments(b, 'decoder')) for b in found]
    texts = [(i[key], t[key]) for i, t in both for key in i]
  else:
    texts = [
      (i, t)
      for b in found
      for i, t in zip(
        b['encoder_input_tokens'], b['decoder_target_tokens'], strict=True
      )
      if t.any()
    ]
  assert sorted((words.decode(i), words.decode(t)) for i, t in texts) == (
    sorted((row['inputs'], row['targets']) for row in expected)
  )


def test_pairs_of_several_files_are_equally_likely(corpus, pairs, tmp_path):
  path, rows = pairs
  few = tmp_path / 'few.jsonl'
  few.write_text(json.dumps({'inputs': 'abc', 'targets': 'def'}) + '\n')
  dataset = text.text_pairs(
    (path, str(few)), corpus, batch_size=4, repeat=False, inputs_length=200
  )
  words = vocabulary.load(corpus)
  found = [
    words.decode(row)
    for batch in take(dataset)
    for row in batch['encoder_input_tokens']
    if row.any()
  ]
  assert sorted(found) == sorted(['abc', *(row['inputs'] for row in rows)])


def test_long_pairs_are_cut_and_keep_their_eos(corpus, pairs):
  dataset = text.text_pairs(
    pairs[0], corpus, batch_size=4, inputs_length=5, targets_length=3
  )
  batch = take(dataset, 1)[0]
  assert (batch['encoder_input_tokens'][:, -1] == vocabulary.EOS).all()


def test_the_defaults_ask_jax(corpus):
  assert batches.shard(8, None, None) == (0, 1, 8)
  assert take(text.span_corruption(corpus, batch_size=2, inputs_length=9), 1)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'inputs_length': 3}, 'inputs_length 3 is too small'),
    ({'inputs_length': 4000}, 'sentinels and there are 100'),
    ({'targets_length': 3}, 'targets_length 3 is too small'),
    ({'noise_density': 1.0}, 'between 0 and 1'),
    ({'split': 'test'}, r"no split 'test'.*\['train', 'validation'\]"),
    ({'batch_size': 9, 'shard_count': 2}, '9 cannot be shared by 2'),
    ({'vocab_size': 256}, 'has 300 ids and the model only 256'),
    (
      {'split': 'validation', 'inputs_length': 1500, 'noise_density': 0.1},
      'holds less than one text',
    ),
  ],
)
def test_bad_arguments(corpus, arguments, message):
  with pytest.raises(ValueError, match=message):
    make(corpus, **arguments)


def test_bad_pairs_are_listed(corpus, tmp_path):
  path = tmp_path / 'pairs.jsonl'
  path.write_text('{"inputs": "a", "targets": "b"}\n[]\n{"inputs": 1}\nx\n')
  with pytest.raises(ValueError, match=r'lines \[2, 3, 4\].*3 in all, 1 good'):
    text.text_pairs(path, corpus, batch_size=1)
  with pytest.raises(ValueError, match='has 300 ids and the model only 299'):
    text.text_pairs(path, corpus, batch_size=1, vocab_size=299)


def test_it_needs_no_tensorflow():
  code = 'import sys, upcycle.data.text; assert "tensorflow" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)
