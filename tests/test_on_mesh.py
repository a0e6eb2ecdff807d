# SPDX-License-Identifier: Apache-2.0
"""Runs tests/on_mesh with eight devices: a process has them from its start.

One of them alone: XLA_FLAGS=--xla_force_host_platform_device_count=8 \
  python -m pytest tests/on_mesh/test_exchange.py
"""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from tests.conftest import with_devices

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / 'tests' / 'on_mesh').glob('test_*.py'))


@pytest.mark.parametrize('file', FILES, ids=lambda f: f.stem)
def test_with_eight_devices(file):
  done = subprocess.run(
    [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', file],
    env=with_devices(8),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=1000,  # a collective that waits for ever
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_collectives_of_64_devices():
  done = subprocess.run(
    [sys.executable, '-m', 'tests.topologies', 'cpu:64'],
    env={k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'},
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  # Encoder and decoder, forward and both passes, two meshes.
  assert done.stdout.count('all-to-all') == 12
