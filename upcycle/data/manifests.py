# SPDX-License-Identifier: Apache-2.0
"""Folders of prepared data: made whole or not at all, checked when opened.

Beside the files of a folder is a manifest.json with what they are and where
they come from, and size and sha256 of each.
"""

from collections.abc import Callable
import json
import os
from pathlib import Path
import tempfile
from typing import Any

from upcycle.data import packages

FORMAT = 1


def write(
  folder: str | Path, fill: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
  """Makes a folder, in place of the one that may be there.

  Args:
    folder: what is made.
    fill: writes the files into the folder it is given; returns what the
      manifest says about them.

  Returns:
    The manifest.
  """
  folder = Path(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder.parent, prefix='.') as name:
    new = Path(name) / 'new'
    new.mkdir()
    said = fill(new)
    files = {
      p.name: {'bytes': p.stat().st_size, 'sha256': packages.sha256(p)}
      for p in sorted(new.iterdir())
    }
    manifest = {'format': FORMAT} | said | {'files': files}
    (new / 'manifest.json').write_text(json.dumps(manifest, indent=2) + '\n')
    if folder.exists():
      os.replace(folder, Path(name) / 'old')
    os.replace(new, folder)
  return manifest


def read(folder: str | Path, what: str, prepare: str) -> dict[str, Any]:
  """The manifest of a folder, once the sizes of all files agree with it.

  Args:
    folder: what `write` made.
    what: a folder of, e.g. 'tokenized corpus', for errors.
    prepare: how to make one, for errors.

  Raises:
    FileNotFoundError: there is none; it says how to prepare one.
    ValueError: the manifest cannot be read, or files are missing or cut short.
  """
  path = Path(folder) / 'manifest.json'
  if not path.is_file():
    raise FileNotFoundError(f'There is no {what} in {folder}: {prepare}.')
  try:
    found = json.loads(path.read_text())
    files = {name: row['bytes'] for name, row in found['files'].items()}
    known = found['format'] == FORMAT
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f'{path} is not a manifest: delete {folder} and {prepare}.'
    ) from error
  if not known:
    raise ValueError(
      f'{path} has format {found["format"]}, not {FORMAT}: {prepare}.'
    )
  wrong = [
    f'{name} ({size} bytes expected)'
    for name, size in files.items()
    if not (p := path.parent / name).is_file() or p.stat().st_size != size
  ]
  if wrong:
    raise ValueError(
      f'Missing or incomplete in {folder}: {", ".join(wrong)}; delete the '
      f'folder and {prepare}.'
    )
  return found


def verify(folder: str | Path, what: str, prepare: str) -> dict[str, Any]:
  """Like `read`, and every checksum is compared."""
  found = read(folder, what, prepare)
  for name, row in found['files'].items():
    packages.verify(Path(folder) / name, row['sha256'])
  return found


def existing(
  folder: Path,
  origin: dict[str, Any],
  verify: Callable[[Path], dict[str, Any]],
  say: Callable[[str], None],
) -> dict[str, Any] | None:
  """The manifest of a sound folder of the same origin, otherwise None.

  Args:
    folder: that may be there.
    origin: what it should be made of.
    verify: gives its manifest, or raises as the function `verify` does.
    say: is told why a folder that is there has to be made again.
  """
  if not folder.exists():
    return None
  try:
    found = verify(folder)
  except (ValueError, FileNotFoundError) as error:
    say(f'Preparing {folder} again. {error}')
    return None
  return found if found['origin'] == origin else None
