# SPDX-License-Identifier: Apache-2.0
"""The flags that all scripts share: gin files and bindings of their macros."""

import argparse
import copy
import os
from pathlib import Path
import re
import sys

import gin

# What a user can mend, and what gin makes of a binding's mistakes.
ERRORS = (
  FloatingPointError,
  ImportError,
  OSError,
  RuntimeError,
  TypeError,
  ValueError,
)
ROOT = Path(__file__).resolve().parent.parent
# Of the runtime's errors: what would be the same when tried again.
_LASTING = 'RESOURCE_EXHAUSTED', 'INVALID_ARGUMENT', 'UNIMPLEMENTED'
_JOBS: list[str] = []  # that this process has joined: at most one
_EXPLICIT = 'or ADDRESS:PORT,PROCESSES,INDEX[,SECONDS]'
# The flag of scripts that run on several hosts, and what its value does.
DISTRIBUTED = (
  "'auto': one process of a job on a Cloud TPU or under Slurm; "
  f"{_EXPLICIT}: of any other, with the first one's address, how many there "
  'are, which this is, and after how many seconds a silent one is given up',
  '',
)


def parse(
  description: str, *, complete: bool = True, **flags: tuple[str, str | None]
) -> argparse.Namespace:
  """Parses the command line and the gin files and bindings it names.

  Args:
    description: what --help says.
    complete: whether all macros that the gin files require must be given.
    **flags: further flags: their help, and their default or None if they
      must be given.
  """
  parser = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--gin_file', action='append', required=True, help='may be repeated'
  )
  for name, (text, default) in flags.items():
    parser.add_argument(
      f'--{name}', required=default is None, default=default, help=text
    )
  parser.add_argument(
    '--gin.NAME=VALUE',
    dest='gin',
    action='append',
    default=[],
    metavar='',
    help='sets a macro or a parameter: --gin.MODEL_DIR="\'runs/a\'", '
    '--gin.train.train.num_steps=100 (a string keeps its quotes)',
  )
  bindings = [a[6:] for a in sys.argv[1:] if a.startswith('--gin.')]
  rest = [a for a in sys.argv[1:] if not a.startswith('--gin.')]
  args = parser.parse_args(rest)
  # Includes are the repository's, wherever the command is given; relative paths
  # of data and runs go by where it is given.
  gin.add_config_file_search_path(str(ROOT))
  try:
    gin.parse_config_files_and_bindings(
      args.gin_file, None, finalize_config=False
    )
    # What the files have imported, a flag may name: --gin.a.b=@module.function.
    imports = re.findall(r'^(?:import|from) .*', gin.config_str(), re.MULTILINE)
    gin.parse_config([*imports, *bindings])
    if complete:
      gin.finalize()
  except SyntaxError as error:
    raise ValueError(
      f'A gin file or binding cannot be read: {error}. Strings keep their '
      'quotes, as in --gin.MODEL_DIR="\'runs/a\'".'
    ) from error
  _check_used(bindings)
  return args


def _check_used(bindings: list[str]) -> None:
  """Refuses macros and scopes that nothing refers to: gin takes them."""
  config = gin.config_str()
  names = [binding.split('=')[0].strip() for binding in bindings]
  macros = set(re.findall(r'%(\w+)', config))
  unused = [n for n in names if '.' not in n and n not in macros]
  scopes = [n for n in names if '/' in n]
  unused += [n for n in scopes if f'@{n.rsplit("/", 1)[0]}/' not in config]
  if unused:
    raise ValueError(
      f'Nothing in the gin files uses {", ".join(unused)}. Their macros are '
      f'{", ".join(sorted(macros))}.'
    )


def bound(function, name: str, *default):
  """What the gin files bind to one parameter of a function.

  Args:
    function: a configurable.
    name: of the parameter.
    *default: what to return if nothing is bound to it.

  Raises:
    ValueError: nothing, and there is no default.
  """
  try:
    bindings = gin.get_bindings(function, resolve_references=False)
  except ValueError:  # no gin file has imported it
    bindings = {}
  # A gin reference becomes its value when it is copied.
  value = copy.deepcopy(bindings[name]) if name in bindings else gin.REQUIRED
  if value is not gin.REQUIRED:
    return value
  if default:
    return default[0]
  macro = f' = {bindings[name]}' if name in bindings else ''
  raise ValueError(
    f'The gin files and flags bind nothing to {function.__name__}.{name}{macro}'
  )


def join(processes: str) -> None:
  """Makes this process one of a job's; see DISTRIBUTED for the flag's values.

  Raises:
    ValueError: the flag is none of them.
  """
  if not processes:
    return
  import jax

  _JOBS.append(processes)
  if processes == 'auto':
    jax.distributed.initialize()
    return
  found = re.fullmatch(r'([^,]+:\d+),(\d+),(\d+)(?:,(\d+))?', processes)
  if not found:
    raise ValueError(f"--distributed={processes} is not 'auto', {_EXPLICIT}.")
  address, *numbers = found.groups()
  count, index, seconds = (int(n) if n else 100 for n in numbers)
  jax.distributed.initialize(
    address, count, index, heartbeat_timeout_seconds=seconds
  )


def run(main) -> None:
  """Calls main; what the user can mend ends as one line, not a traceback.

  If another process of the job is gone, the exit code says to try again.
  """
  try:
    main()
  except ERRORS as e:
    if os.environ.get('UPCYCLE_TRACEBACK'):
      raise
    hint = '(UPCYCLE_TRACEBACK=1 shows where it was raised.)'
    text = f'{type(e).__name__}: {e}\n{hint}'
    if not _passes(e):
      sys.exit(text)
    print(text, file=sys.stderr, flush=True)
    # At once: JAX's own exit would wait for the processes that are gone.
    os._exit(os.EX_TEMPFAIL)
  except SystemExit as stop:
    if stop.code == os.EX_TEMPFAIL:
      print(stop, file=sys.stderr)
    raise


def _passes(error: Exception) -> bool:
  """Whether the runtime failed for want of another process of the job."""
  jax = sys.modules.get('jax')
  return (
    bool(_JOBS)
    and isinstance(error, jax.errors.JaxRuntimeError)
    and not str(error).startswith(_LASTING)
  )
