# SPDX-License-Identifier: Apache-2.0
"""The flags that all scripts share: gin files and bindings of their macros."""

import argparse
import copy
import os
from pathlib import Path
import sys

import gin

ROOT = Path(__file__).resolve().parent.parent


def parse(
  description: str, *, complete: bool = True, **flags: str
) -> argparse.Namespace:
  """Parses the command line and the gin files and bindings it names.

  Args:
    description: what --help says.
    complete: whether all macros that the gin files require must be given.
    **flags: further flags, all required, with their help.
  """
  parser = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--gin_file', action='append', required=True, help='may be repeated'
  )
  for name, text in flags.items():
    parser.add_argument(f'--{name}', required=True, help=text)
  parser.add_argument(
    '--gin.NAME=VALUE',
    dest='gin',
    action='append',
    default=[],
    metavar='',
    help='sets a macro or a parameter: --gin.MODEL_DIR="\'runs/a\'", '
    '--gin.train.train.num_steps=100',
  )
  bindings = [a[6:] for a in sys.argv[1:] if a.startswith('--gin.')]
  rest = [a for a in sys.argv[1:] if not a.startswith('--gin.')]
  args = parser.parse_args(rest)
  # Includes and relative data paths are those of the repository, wherever the
  # command is given.
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config_files_and_bindings(
    args.gin_file, bindings, finalize_config=complete
  )
  return args


def bound(function, name: str):
  """What the gin files bind to one parameter of a function."""
  bindings = gin.get_bindings(function, resolve_references=False)
  if name not in bindings:
    raise ValueError(
      f'The gin files bind nothing to {function.__name__}.{name}.'
    )
  # A gin reference becomes its value when it is copied.
  return copy.deepcopy(bindings[name])


def run(main) -> None:
  """Calls main; what the user can mend ends as one line, not a traceback."""
  try:
    main()
  except (ValueError, FileNotFoundError, ImportError, FloatingPointError) as e:
    if os.environ.get('UPCYCLE_TRACEBACK'):
      raise
    hint = '(UPCYCLE_TRACEBACK=1 shows where it was raised.)'
    sys.exit(f'{type(e).__name__}: {e}\n{hint}')
