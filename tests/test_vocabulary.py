# SPDX-License-Identifier: Apache-2.0
"""Ids, sentinels, and the errors of vocabularies and tokenized corpora."""

import hashlib
import io
import json
import shutil

from hypothesis import given
from hypothesis import strategies as st
import pytest
import sentencepiece

from tests import tiny_text
from upcycle.data import packages, tokenized, vocabulary


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return tiny_text.corpus(tmp_path_factory.mktemp('data') / 'tiny')


@pytest.fixture(scope='module')
def words(corpus):
  return vocabulary.load(corpus)


@pytest.fixture
def copy(corpus, tmp_path):
  return shutil.copytree(corpus, tmp_path / 'copy')


def test_sentinels_count_down_from_the_end(words):
  assert (words.pieces, words.size) == (200, 300)
  assert words.padded_size() == 384
  assert [words.sentinel(i) for i in (0, 1, 99)] == [299, 298, 200]


def test_sentinels_are_read_and_shown(words):
  text = words.model.decode(words.encode('abc def'))
  ids = words.encode(f'{text} <extra_id_0> {text}<extra_id_99>')
  assert [i for i in ids if i >= 200] == [299, 200]
  assert words.decode(ids) == f'{text} <extra_id_0> {text} <extra_id_99>'
  with pytest.raises(ValueError, match='no <extra_id_100>'):
    words.encode('<extra_id_100>')


def test_decoding_stops_at_eos_and_shows_no_padding(words):
  ids = words.encode('abc')
  assert words.decode([0, *ids, 0, 1, *ids]) == words.decode(ids)
  assert words.decode([*ids, 350]).endswith('<unk>')


@given(st.text('abcdefghijklmnop ', max_size=60))
def test_round_trip(text):
  words = WORDS
  assert words.decode(words.encode(text)) == ' '.join(text.split())


WORDS = vocabulary.Vocabulary(
  vocabulary.train(tiny_text.documents(60), tiny_text.PIECES)
)


def test_training_is_deterministic():
  texts = tiny_text.documents(40)
  one, two = (vocabulary.train(texts, 150) for _ in range(2))
  assert one == two
  capped = vocabulary.train(texts, 150, max_sentences=100)
  assert capped != one


def test_too_many_pieces_is_one_error():
  with pytest.raises(ValueError, match='No vocabulary of 5000 pieces'):
    vocabulary.train(tiny_text.documents(5), 5000)


def test_other_special_ids_are_refused(tmp_path):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(tiny_text.documents(40)),
    model_writer=model,
    vocab_size=100,
    minloglevel=2,
  )
  path = tmp_path / 'x.model'
  path.write_bytes(model.getvalue())
  with pytest.raises(ValueError, match=r'= \(-1, 2, 0\), T5 needs \(0, 1, 2\)'):
    vocabulary.load(path)
  path.write_bytes(b'nothing')
  with pytest.raises(ValueError, match='is not a SentencePiece model'):
    vocabulary.load(path)
  with pytest.raises(FileNotFoundError, match='prepare_data'):
    vocabulary.load(tmp_path / 'y.model')


def test_the_vocabulary_of_t5_is_verified(tmp_path, monkeypatch):
  path = tmp_path / 'vocabularies' / 't5.model'
  packages.write(path, b'a model')
  with pytest.raises(ValueError, match=vocabulary.T5_SHA256):
    vocabulary.t5(tmp_path)
  digest = hashlib.sha256(b'a model').hexdigest()
  monkeypatch.setattr(vocabulary, 'T5_SHA256', digest)
  assert vocabulary.t5(tmp_path) == path


def test_a_split_may_be_empty(tmp_path):
  splits = {'train': ['abc def'], 'validation': []}
  model = WORDS.model.serialized_model_proto()
  tokenized.write(tmp_path / 'corpus', splits, model, {})
  assert len(tokenized.load(tmp_path / 'corpus', 'validation').ids) == 0


def test_a_missing_corpus_says_how_to_make_one(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'prepare_data\.py text'):
    tokenized.load(tmp_path / 'nowhere', 'train')


@pytest.mark.parametrize('content', ['', '[]', '{}', '{"files": {"a": 1}}'])
def test_a_corrupt_manifest_is_one_error(copy, content):
  (copy / 'manifest.json').write_text(content)
  with pytest.raises(ValueError, match='is not a manifest: delete'):
    tokenized.load(copy, 'train')


def test_another_format_is_refused(copy):
  manifest = json.loads((copy / 'manifest.json').read_text()) | {'format': 0}
  (copy / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match='format 0, not 1'):
    tokenized.load(copy, 'train')


def test_another_vocabulary_is_refused(copy):
  path = copy / 'vocabulary.model'
  content = path.read_bytes()
  path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  with pytest.raises(ValueError, match=r'vocabulary\.model has sha256'):
    tokenized.load(copy, 'train')


def test_all_missing_files_are_listed(copy):
  (copy / 'train.npy').unlink()
  (copy / 'train_ends.npy').unlink()
  with pytest.raises(ValueError, match=r'train\.npy .*, train_ends\.npy'):
    tokenized.load(copy, 'validation')
