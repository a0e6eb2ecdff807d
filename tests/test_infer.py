# SPDX-License-Identifier: Apache-2.0
"""Text in, text out; and what a suite of tasks makes of it."""

import io
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny_runs, tiny_scripts
from tests.test_decode import model, parameters
from upcycle import decode, evaluate_tasks, infer
from upcycle.data import text_tasks, vocabulary
from upcycle.models import t5

ROOT = pathlib.Path(__file__).parent.parent


class Words(vocabulary.Vocabulary):
  """Numbers for words."""

  def __init__(self):
    pass

  def encode(self, text):
    return [int(word) for word in text.split()]

  def decode(self, ids):
    return ' '.join(str(i) for i in ids if i > 1)


TEXTS = ['5 6 7', '8 9 10 11 12', '13', '5 6 7', '20 21']


def run(texts=TEXTS, **options):
  given = {'max_length': 6, 'batch_size': 2} | options
  return infer.infer(model(), parameters(), texts, Words(), **given)


def test_each_text_is_answered_in_order():
  rows = list(run())
  assert [row['inputs'] for row in rows] == TEXTS
  assert rows[0] == rows[3] or rows[0] == pytest.approx(rows[3])
  decoded = decode.generate(
    *(model(), parameters(), infer.tokenized(['13'], Words(), 16, 1)),
    max_length=6,
  )
  assert rows[2]['prediction'] == Words().decode(decoded.tokens[0, 0].tolist())
  assert rows[2]['score'] == pytest.approx(
    float(decoded.scores[0, 0]), rel=1e-4
  )
  assert rows[2].keys() == {'inputs', 'prediction', 'score'}


def test_a_batch_is_answered_before_the_next_is_read():
  read = []

  def texts():
    for text in TEXTS:
      read.append(text)
      yield text

  next(run(texts()))
  assert read == TEXTS[:2]


def test_several_answers_are_the_best_and_others():
  for row in run(strategy=decode.Beam(3)):
    assert len(row['others']) == 2
    scores = [row['score'], *(other['score'] for other in row['others'])]
    assert scores == sorted(scores, reverse=True)


def test_batches_draw_differently_and_a_seed_draws_again():
  draw = decode.Sampling(temperature=2.0)
  same = ['5 6 7'] * 4
  first, again = (
    [row['prediction'] for row in run(same, strategy=draw, seed=1)]
    for _ in range(2)
  )
  assert first == again
  assert first[:2] != first[2:]


def test_texts_are_cut_and_padded_to_powers_of_two():
  tokens = infer.tokenized(['5 ' * 20, '6'], Words(), 512, 3)
  assert tokens.shape == (3, 32)
  np.testing.assert_array_equal(tokens[1, :3], [6, 1, 0])
  assert tokens[0, 20] == 1 and not tokens[2].any()
  tokens = infer.tokenized(['5 ' * 20], Words(), 10, 1)
  assert tokens.tolist() == [[5] * 9 + [1]]


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  return tiny_runs.files(tmp_path_factory.mktemp('tiny'))


def scores(prepared, monkeypatch, answer, **options):
  """What Tasks gives where each text is answered by answer(text)."""

  def fake(model, params, texts, words, **options):
    return ({'prediction': answer(text)} for text in texts)

  monkeypatch.setattr(infer, 'infer', fake)
  tasks = evaluate_tasks.Tasks(
    prepared['corpus'], directory=prepared['tasks'], **options
  )
  return tasks(t5.T5(t5.T5Config()), None)


def gold(text):
  """The targets of tiny_runs.tasks take turns."""
  name, i = text.split()
  return text_tasks.TASKS[name].labels[int(i) % 2]


METRICS = {
  'wic/accuracy',
  'supersense/accuracy',
  'relation/accuracy',
  'spam/accuracy',
  'spam/f1',
}


def test_tasks_are_scored_by_their_labels(prepared, monkeypatch):
  right = scores(prepared, monkeypatch, lambda text: f' {gold(text)}\n')
  nonsense = scores(prepared, monkeypatch, lambda text: 'neither')
  for name in METRICS | {'mean'}:
    assert (right.pop(name), nonsense.pop(name)) == (100.0, 0.0)
  assert right == nonsense, 'baselines need no model'
  assert right.keys() == {
    f'{name}/{baseline}'
    for name in METRICS
    for baseline in ('majority', 'naive_bayes')
  }
  assert right['wic/accuracy/majority'] == 50.0


def test_the_mean_is_over_tasks(prepared, monkeypatch):
  def answer(text):
    return 'spam' if 'spam' in text else gold(text)

  found = scores(prepared, monkeypatch, answer)
  assert found['spam/accuracy'] == 50.0
  assert found['spam/f1'] == pytest.approx(200 / 3)
  assert found['mean'] == pytest.approx((3 * 100 + (50 + 200 / 3) / 2) / 4)
  one = {'tasks': ('spam',), 'num_examples': 1}
  first = scores(prepared, monkeypatch, answer, **one)
  # Baselines are of all examples.
  assert first == {'spam/accuracy': 0.0, 'spam/f1': 0.0, 'mean': 0.0}


def test_a_vocabulary_has_no_more_ids_than_the_model(prepared):
  tasks = evaluate_tasks.Tasks(prepared['corpus'], directory=prepared['tasks'])
  with pytest.raises(ValueError, match='has 300 ids and the model only 48'):
    tasks(model(), parameters())


def test_the_script_streams_json_lines(prepared, tmp_path):
  config = 'configs/upcycle_t5_laptop.gin'
  text = (ROOT / config).read_text()
  bindings = tiny_runs.bindings(text, prepared, tmp_path / 'run')
  flags = [f'--gin.{line.replace(" = ", "=", 1)}' for line in bindings]
  lines = ['the cat', json.dumps({'inputs': 'a dog', 'targets': 'x'})]
  done = subprocess.run(
    [
      *(sys.executable, 'scripts/infer.py', f'--gin_file={config}', *flags),
      *(f'--checkpoint={prepared["sparse"]}', '--max_length=3'),
      *('--samples=2', '--temperature=1', '--batch_size=1'),
    ],
    input='\n'.join(lines),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  rows = [json.loads(line) for line in io.StringIO(done.stdout)]
  assert [row['inputs'] for row in rows] == ['the cat', 'a dog']
  assert all(len(row['others']) == 1 for row in rows)


@pytest.mark.parametrize(
  ('flags', 'wrong'),
  [
    ('--top_p=0.9 --top_k=3 --samples=2 --alpha=1',
     ['--alpha without --beams', '--top_p without --temperature',
      '--top_k without --temperature', '--samples without --temperature']),
    ('--beams=4 --temperature=1 --top_p=0.9',
     ['--temperature with --beams', '--top_p with --beams']),
    ('--temperature=1.0 --alpha=1', ['--alpha without --beams']),
  ],
)  # fmt: skip
def test_flags_that_would_do_nothing_are_all_named(flags, wrong, monkeypatch):
  config = '--gin_file=configs/upcycle_t5_laptop.gin'
  said = tiny_scripts.main(monkeypatch, 'infer.py', config, *flags.split())
  assert f'would do nothing: {", ".join(wrong)}.' in said
