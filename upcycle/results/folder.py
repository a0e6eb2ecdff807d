# SPDX-License-Identifier: Apache-2.0
"""A run's folder, and whether it belongs to the run that is asked for."""

from pathlib import Path
import re

CONFIG = 'config.gin'
# Settings that a resumed run may change: how long, how often, on what.
MAY_CHANGE = (
  r'(train\.)?train\.(num_steps|keep_checkpoints|make_mesh|\w+_every)\b'
  r'|(partition\.)?make_mesh\.|.*\bMoeConfig\.exchange\b|(\w+\.)*(pipelined'
  r'|hierarchical|flat)\.|MODEL_DIR'
)


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
