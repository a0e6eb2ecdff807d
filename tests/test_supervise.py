# SPDX-License-Identifier: Apache-2.0
"""The supervisor: which ends of a run it answers by starting it again."""

import signal
import subprocess
import sys

import pytest

from tests.fake_cloud import ROOT

CHILD = """
import os, pathlib, sys
file, *codes = sys.argv[1:]
starts = pathlib.Path(file)
n = len(starts.read_text()) if starts.exists() else 0
starts.write_text('x' * (n + 1))
code = int(codes[n])
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""


@pytest.mark.parametrize(
  'flags, codes, code, starts',
  [
    ([], [0], 0, 1),
    ([], [1], 1, 1),
    ([], [2], 2, 1),
    ([], [75, 75, 0], 0, 3),
    ([], [-signal.SIGKILL, -signal.SIGABRT, 0], 0, 3),
    ([], [75, 1, 0], 1, 2),
    (['--restarts=2'], [75] * 9, 75, 3),
    (['--restarts=1'], [-signal.SIGKILL] * 9, 137, 2),
  ],
)
def test_supervisor(flags, codes, code, starts, tmp_path):
  file = tmp_path / 'starts'
  child = [sys.executable, '-IS', '-c', CHILD, file, *map(int, codes)]
  done = subprocess.run(
    [*supervisor(*flags), *map(str, child)],
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )
  assert done.returncode == code
  assert len(file.read_text()) == starts
  assert len(done.stderr.splitlines()) == starts - 1


def supervisor(*flags):
  script = str(ROOT / 'scripts/supervise.py')
  return [sys.executable, script, '--wait=0', *flags]


def test_supervisor_passes_sigterm_on_and_ends():
  code = 'import signal, sys; signal.signal(15, lambda *_: sys.exit(75)); '
  code += 'print("ready", flush=True); signal.pause()'
  child = [sys.executable, '-IS', '-c', code]
  with subprocess.Popen(
    [*supervisor(), *child], stdout=subprocess.PIPE, text=True
  ) as process:
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    try:
      out, _ = process.communicate(timeout=20)
    finally:
      process.kill()
  assert process.returncode == 75 and not out, 'it was started again'
