# SPDX-License-Identifier: Apache-2.0
"""Decoding: against Hugging Face, against the full forward pass, by itself."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import GOLDEN, golden
from tests.test_t5 import TINY, close
from upcycle import checkpoints, decode, initialize, routing
from upcycle.decode import base
from upcycle.decode.sampling import nucleus
from upcycle.models import moe, t5

E, V, LENGTH = 4, 48, 7
INPUTS = np.random.default_rng(0).integers(2, V, (5, 9)).astype(np.int32)
INPUTS[0, 4:] = 0


@functools.cache
def model(dense=False):
  """A T5 whose decoder's experts overflow, unless they have room for all."""
  sparse = functools.partial(moe.MoeConfig, E, router_std=1.0)
  config = dataclasses.replace(
    TINY, vocab_size=V, num_encoder_layers=1, num_decoder_layers=2
  )
  if not dense:
    config = dataclasses.replace(
      config,
      encoder_moe=sparse(group_size=None),
      encoder_moe_layers=(0,),
      decoder_moe=sparse(routing.top_k, capacity_factor=0.5),
    )
  return t5.T5(config)


@functools.cache
def parameters(dense=False):
  params = jax.jit(initialize.init_params, static_argnums=(0, 1))(
    model(dense), 0
  )
  # Or all rows would say the same word again and again.
  params['token_embedder']['embedding'] *= 3
  head = params['decoder']['logits_dense']
  head['kernel'] = head['kernel'].at[:, 0].set(0)  # never a padding token
  return params


def generate(strategy=decode.GREEDY, dense=False, inputs=INPUTS, **options):
  return decode.generate(
    *(model(dense), parameters(dense), jnp.asarray(inputs)),
    strategy=strategy,
    max_length=LENGTH,
    **options,
  )


def forward(of, *targets, dense=False):
  """Logits of the full forward pass, compiled."""
  run = jax.jit(lambda params, *inputs: of.apply({'params': params}, *inputs))
  return run(parameters(dense), INPUTS, *targets)


@pytest.mark.parametrize('version', ['v1_0', 'v1_1'])
def test_agrees_with_hugging_face(version):
  arrays, meta = golden(f'hf_t5_{version}')
  checkpoint = checkpoints.read(GOLDEN / f'hf_t5_{version}')
  params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), checkpoint.params)
  run = functools.partial(
    decode.generate,
    t5.T5(t5.T5Config(**checkpoint.metadata['model'])),
    params,
    jnp.asarray(arrays['batch/encoder_input_tokens']),
    max_length=meta['generate']['max_new_tokens'],
  )
  beam = meta['generate']['beam4']
  beam = decode.Beam(beam['num_beams'], beam['length_penalty'])
  for name, strategy in (('greedy', decode.GREEDY), ('beam4', beam)):
    decoded = run(strategy=strategy)
    want = arrays[f'generate/{name}']
    np.testing.assert_array_equal(decoded.tokens[:, 0], want)
  close(decoded.scores[:, 0], arrays['generate/beam4_scores'])


def test_rows_and_beams_that_end_early_agree_with_hugging_face():
  arrays, meta = golden('hf_t5_ends')
  checkpoint = checkpoints.read(GOLDEN / 'hf_t5_v1_1')
  params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), checkpoint.params)
  head = params['decoder']['logits_dense']
  head['kernel'] = head['kernel'].at[:, base.EOS].multiply(meta['eos_factor'])
  greedy, beams = (
    decode.generate(
      t5.T5(t5.T5Config(**checkpoint.metadata['model'])),
      params,
      jnp.asarray(arrays['inputs']),
      max_length=meta['max_new_tokens'],
      strategy=strategy,
    )
    for strategy in (
      decode.GREEDY,
      decode.Beam(meta['beam4']['num_beams'], meta['beam4']['length_penalty']),
    )
  )
  np.testing.assert_array_equal(greedy.tokens[:, 0], arrays['greedy'])
  np.testing.assert_array_equal(beams.tokens, arrays['beam4'])
  close(beams.scores, arrays['beam4_scores'])


@pytest.mark.parametrize('dense', [False, True])
def test_a_cached_step_equals_the_full_forward_pass(dense):
  """Token by token, and in the score."""
  decoded = generate(dense=dense)
  tokens = np.asarray(decoded.tokens[:, 0])
  assert len(np.unique(tokens)) > 5, 'dull text proves little'
  before = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
  logits = forward(model(dense).serving(), before, tokens, dense=dense)
  logs = np.asarray(jax.nn.log_softmax(logits))
  np.testing.assert_array_equal(
    tokens, np.where(tokens > 0, logs.argmax(-1), 0)
  )
  picked = np.take_along_axis(logs, tokens[..., None], -1)[..., 0]
  close(decoded.scores[:, 0], np.where(tokens > 0, picked, 0).sum(1))


def test_steps_give_the_logits_of_the_full_forward_pass():
  serving, variables = model().serving(), {'params': parameters()}
  tokens = np.random.default_rng(1).integers(2, V, (5, LENGTH)).astype(np.int32)
  before = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
  full = forward(serving, before)
  encoded = serving.apply(variables, jnp.asarray(INPUTS), method='encode')

  @jax.jit
  def step(cache, tokens, i, encoded=None):
    return serving.apply(
      *(variables | cache, tokens, i, jnp.asarray(INPUTS > 0), encoded),
      max_length=LENGTH,
      method='step',
      mutable=['cache', 'memory'],
    )

  _, cache = step({}, before[:, 0], 0, encoded)
  for i in range(LENGTH):
    logits, cache = step(cache, before[:, i], i)
    close(logits, full[:, i])


def test_no_row_depends_on_others():
  """Where tokens compete for room in training they would."""
  together = generate().tokens
  for i in (0, 3):
    alone = generate(inputs=INPUTS[i : i + 1]).tokens[0]
    np.testing.assert_array_equal(alone, together[i])
  before = np.pad(together[:, 0], ((0, 0), (1, 0)))[:, :-1]
  logits = [forward(m, before) for m in (model(), model().serving())]
  assert np.abs(logits[0] - logits[1]).max() > 1e-2, 'nothing was dropped'


def test_what_equals_greedy():
  greedy = generate()
  for strategy in (
    decode.Sampling(temperature=1.0, top_k=1),
    decode.Sampling(temperature=1.0, top_p=1e-6),
    decode.Beam(rows=1, alpha=0.0),
  ):
    other = generate(strategy)
    np.testing.assert_array_equal(other.tokens, greedy.tokens)
    close(other.scores, greedy.scores)


def test_samples_are_drawn_by_the_key():
  strategy = decode.Sampling(temperature=1.5, rows=3)
  key, other = jax.random.split(jax.random.key(1))
  a, b, c = (generate(strategy, key=k) for k in (key, key, other))
  np.testing.assert_array_equal(a.tokens, b.tokens)
  assert (a.tokens != c.tokens).any()
  assert a.tokens.shape == (5, 3, LENGTH)
  assert (np.diff(a.scores) <= 0).all(), 'the best is first'
  assert (a.tokens[:, 0] != a.tokens[:, 1]).any()


def test_draws_have_the_probabilities():
  probs = np.array([0.5, 0.25, 0.15, 0.1])
  logits = jnp.tile(jnp.log(probs), (20_000, 1))

  def shares(**options):
    strategy = decode.Sampling(**{'temperature': 1.0, **options})
    drawn = strategy.draw(logits, jax.random.key(0))
    return np.bincount(drawn, minlength=4) / len(logits)

  for options, want in (
    ({}, probs),
    ({'temperature': 0.5}, probs**2 / sum(probs**2)),
    ({'top_k': 2}, [2 / 3, 1 / 3, 0, 0]),
    ({'top_p': 0.6}, [2 / 3, 1 / 3, 0, 0]),
    ({'top_p': 0.8}, probs * [1, 1, 1, 0] / 0.9),
  ):
    np.testing.assert_allclose(shares(**options), want, atol=0.02)


def test_nucleus_is_the_fewest_tokens():
  logits = jnp.log(jnp.array([[0.1, 0.6, 0.3], [0.4, 0.3, 0.3]]))
  for p, want in (
    (0.5, [[0, 1, 0], [1, 1, 0]]),
    (0.85, [[0, 1, 1], [1, 1, 1]]),
    (1.0, [[1, 1, 1], [1, 1, 1]]),
  ):
    np.testing.assert_array_equal(nucleus(logits, p), np.array(want, bool))


@pytest.mark.parametrize('penalty', [decode.by_length, decode.by_gnmt])
@pytest.mark.parametrize('alpha', [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(alpha, penalty):
  """Of a chain of four tokens: those that end, or are cut at three."""
  size, longest = 4, 3
  rng = np.random.default_rng(0)
  chain = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(size, size)) * 2))
  step = lambda tokens, index, cache: (chain[tokens], cache)  # noqa: E731
  decoded = decode.Beam(size**longest, alpha, penalty)(
    step,
    jnp.zeros(size**longest, jnp.int32),
    {},
    longest,
    jax.random.key(0),
  )
  scores = {}
  for tokens in itertools.product(range(size), repeat=longest):
    end = tokens.index(1) + 1 if 1 in tokens else longest
    tokens = tokens[:end] + (0,) * (longest - end)
    logs = [chain[a, b] for a, b in itertools.pairwise((0, *tokens[:end]))]
    scores[tokens] = sum(logs) / penalty(float(end), alpha)
  best = max(scores, key=scores.get)
  assert tuple(np.asarray(decoded.tokens[0, 0]).tolist()) == best
  close(decoded.scores[0, 0], scores[best])


def test_penalties():
  assert decode.by_length(9.0, 0.5) == 3.0
  assert decode.by_gnmt(13.0, 2.0) == 9.0  # Wu et al., 2016, equation 14


def test_what_comes_after_the_end_is_padding():
  ending = parameters() | {}
  head = ending['decoder']['logits_dense']['kernel']
  decoder = ending['decoder'] | {
    'logits_dense': {'kernel': head.at[:, base.EOS].multiply(4.0)}
  }
  params = ending | {'decoder': decoder}
  for strategy in (decode.GREEDY, decode.Beam(3)):
    tokens = decode.generate(
      *(model(), params, jnp.asarray(INPUTS)),
      strategy=strategy,
      max_length=LENGTH,
    ).tokens
    ends = tokens == base.EOS
    assert ends.any(axis=-1).sum() > 1
    after = jnp.cumsum(ends, axis=-1) - ends > 0
    assert after.any() and (tokens[after] == 0).all()
    assert ends.sum(axis=-1).max() == 1


@pytest.mark.parametrize('strategy', [decode.GREEDY, decode.Beam(2)])
def test_nobody_waits_for_rows_without_inputs(strategy):
  empty = np.zeros_like(INPUTS)
  together = np.concatenate([INPUTS, empty])
  decoded = generate(strategy, inputs=together)
  np.testing.assert_array_equal(decoded.tokens[:5], generate(strategy).tokens)
  assert not decoded.tokens[5:].any()


def test_a_shape_is_compiled_once():
  generate()
  before = decode.generate._cache_size()
  generate(inputs=INPUTS[::-1])
  generate(decode.Sampling())
  assert decode.generate._cache_size() == before
  generate(inputs=INPUTS[:, :8])
  assert decode.generate._cache_size() == before + 1


def test_predict_is_the_best_of_all_rows():
  batch = {'encoder_input_tokens': INPUTS}
  beam = decode.Beam(2)
  tokens = decode.predict(
    model(), parameters(), batch, strategy=beam, max_length=LENGTH
  )
  np.testing.assert_array_equal(tokens, generate(beam).tokens[:, 0])


@pytest.mark.parametrize(
  'make',
  [
    lambda: decode.Sampling(temperature=-1.0),
    lambda: decode.Sampling(top_p=0.0),
    lambda: decode.Sampling(top_p=1.5),
    lambda: decode.Sampling(rows=0),
    lambda: decode.Beam(rows=0),
  ],
)
def test_refuses(make):
  with pytest.raises(ValueError, match='at least one'):
    make()


def test_refuses_what_would_do_nothing():
  with pytest.raises(ValueError, match='whatever top_k, top_p, rows may be'):
    decode.Sampling(top_k=3, top_p=0.9, rows=2)
