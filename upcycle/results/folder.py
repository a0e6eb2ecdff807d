# SPDX-License-Identifier: Apache-2.0
"""A run's folder, whether it is that of the run that is asked for, and free."""

from collections.abc import Iterator
import contextlib
import fcntl
from pathlib import Path
import re

CONFIG = 'config.gin'
# Settings that a resumed run may change: how long, how often, on what.
MAY_CHANGE = (
  r'(train\.)?train\.(num_steps|keep_checkpoints|make_mesh|\w+_every)\b'
  r'|(partition\.)?make_mesh\.|.*\bMoeConfig\.exchange\b|(\w+\.)*(pipelined'
  r'|hierarchical|flat)\.|MODEL_DIR'
)


class Busy(ValueError):
  """Another process writes to a folder."""


@contextlib.contextmanager
def held(folder: Path, why: str = '', enabled: bool = True) -> Iterator[None]:
  """Holds a folder for as long as this process writes to it.

  The lock ends with the process, however that ends.

  Args:
    folder: made if it is not there.
    why: what to say if another process holds it; '': that it is so.
    enabled: False in all processes but the first.

  Raises:
    Busy: another process holds it.
  """
  if not enabled:
    yield
    return
  new = not folder.exists()
  folder.mkdir(parents=True, exist_ok=True)
  file = folder / '.lock'
  with file.open('w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      why = why or f'Another process is training in {folder}: wait for its end.'
      raise Busy(why) from None
    except OSError:
      pass  # a file system without locks
    try:
      yield
    finally:
      if list(folder.iterdir()) == [file]:  # nothing came of it
        file.unlink()
        if new:
          folder.rmdir()


def check_folder(folder: Path, text: str) -> None:
  """Refuses a folder that is not this run's, before anything is written."""
  if '://' in str(folder) or ':/' in str(folder):
    raise ValueError(f'MODEL_DIR is a local folder, not {folder}.')
  if folder.exists() and not folder.is_dir():
    raise ValueError(f'MODEL_DIR {folder} is a file.')
  # What begins with a dot was being written when a run was killed.
  if not folder.exists() or all(p.name[0] == '.' for p in folder.iterdir()):
    return
  if not (folder / CONFIG).exists():
    raise ValueError(
      f'{folder} is neither empty nor a run: it has no {CONFIG}. '
      'Give another MODEL_DIR.'
    )
  old, new = (_settings(t) for t in ((folder / CONFIG).read_text(), text))
  # `new` may lack what has not been called yet.
  changed = sorted(new - old)
  if changed:
    names = {line.split(' = ')[0] for line in changed}
    changed += sorted(x for x in old if x.split(' = ')[0] in names)
    raise ValueError(
      f'{folder} holds a run with other settings:\n  '
      + '\n  '.join(('- ' if c in old else '+ ') + c for c in changed)
      + '\nGive another MODEL_DIR, or the settings of that run.'
    )


def _settings(text: str) -> set[str]:
  """The bindings of a config, but for those that a resumed run may change."""
  lines = (line.strip() for line in text.replace('\\\n', '').splitlines())
  return {
    ' '.join(line.split())
    for line in lines
    if line and line[0] != '#' and not re.match(MAY_CHANGE, line)
  }
