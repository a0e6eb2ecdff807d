# SPDX-License-Identifier: Apache-2.0
"""One run of two processes with four devices each, as on two hosts."""

import contextlib
import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import drawn, own_shards, tiny_runs
from tests.conftest import with_devices
from upcycle import checkpoints, initialize, optim, results, trees

ROOT = Path(__file__).parent.parent
CONFIG = 'configs/upcycle_t5_laptop.gin'
STEPS = 20


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  return tiny_runs.files(tmp_path_factory.mktemp('tiny'))


def environment(devices):
  """Variables of a process with so many devices, which finds the tests."""
  return with_devices(devices) | {'PYTHONPATH': str(ROOT)}


@pytest.fixture(scope='module')
def drawing(paths, tmp_path_factory):
  """The flag of a gin file by which a run also draws from its model."""
  file = tmp_path_factory.mktemp('drawing') / 'drawing.gin'
  file.write_text(f"""
from __gin__ import dynamic_registration
from tests import drawn
from upcycle import train
train.train.evaluations = {{'drawn': @drawn.scores()}}
drawn.scores.corpus = '{paths['corpus']}'
""")
  return f'--gin_file={file}'


@pytest.fixture(scope='module')
def command(paths):
  def of(folder):
    text = (ROOT / CONFIG).read_text()
    bindings = [
      *tiny_runs.bindings(text, paths, folder),
      'text.span_corruption.batch_size = 8',
      f'train.train.num_steps = {STEPS}',
      'train.train.checkpoint_every = 4',
    ]
    flags = [f'--gin.{line.replace(" = ", "=", 1)}' for line in bindings]
    return [sys.executable, 'scripts/train.py', f'--gin_file={CONFIG}', *flags]

  return of


def free_address():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{free.getsockname()[1]}'


@contextlib.contextmanager
def two_processes(command, prefix=lambda index: []):
  """Starts them; they are gone when the context ends."""
  address = free_address()
  processes = [
    subprocess.Popen(
      [*prefix(i), *command, f'--distributed={address},2,{i},10'],
      env=environment(4),
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
    )
    for i in range(2)
  ]
  try:
    yield processes
  finally:
    for process in processes:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.communicate()


def ends(processes, code):
  for process in processes:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output


def wait_for(folder, step):
  deadline = time.time() + 240
  while not any(row['step'] >= step for row in logged(folder)):
    assert time.time() < deadline, f'step {step} was never reached'
    time.sleep(0.01)


def logged(folder):
  """What was trained and evaluated so far."""
  there = (folder / 'metrics.jsonl').exists()
  rows = results.read(folder) if there else []
  return [row for row in rows if row['split'] in ('train', 'eval')]


@pytest.fixture(scope='module')
def whole(command, drawing, tmp_path_factory):
  """The folder of a run of two processes that was left alone."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  with two_processes([*command(folder), drawing]) as processes:
    ends(processes, 0)
  return folder


def parameters(folder):
  found = checkpoints.read(folder)
  assert found.step == 1000 + STEPS
  return {p: np.asarray(x) for p, x in trees.flatten(found.params).items()}


def same_to_the_bit(folder, whole):
  jax_rows = [logged(f) for f in (folder, whole)]
  for one, other in zip(*jax_rows, strict=True):
    assert (one['step'], one['loss']) == (other['step'], other['loss'])
  ours, theirs = parameters(folder), parameters(whole)
  for path, leaf in theirs.items():
    np.testing.assert_array_equal(ours[path], leaf, err_msg=path)


def test_two_processes_do_what_one_does(whole, command, drawing, tmp_path):
  done = subprocess.run(
    [*command(tmp_path / 'run'), drawing],
    env=environment(8),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  for one, two in zip(logged(tmp_path / 'run'), logged(whole), strict=True):
    assert one['step'] == two['step']
    assert one['loss'] == pytest.approx(two['loss'], rel=2e-4)
  ours = parameters(tmp_path / 'run')
  for path, leaf in parameters(whole).items():
    np.testing.assert_allclose(ours[path], leaf, 0.05, 1e-3, err_msg=path)
  # Of equal parameters: the same draws for each text, however rows are spread.
  one, two = (
    [results.read(folder, 'drawn')[0][str(i)] for i in range(len(drawn.TEXTS))]
    for folder in (tmp_path / 'run', whole)
  )
  assert len(set(one)) == len(one), 'all say the same'
  assert one == pytest.approx(two, rel=1e-4)


def test_two_processes_evaluate_and_infer_together(whole, command, tmp_path):
  """As one does; the first of them writes and prints."""
  flags = [x for x in command(whole)[2:] if 'num_steps' not in x]
  output, lines = tmp_path / 'found.jsonl', tmp_path / 'lines.txt'
  evaluate = [sys.executable, 'scripts/evaluate.py', *flags]
  with two_processes([*evaluate, f'--output={output}']) as processes:
    ends(processes, 0)
  (bytes_of, found) = results.read(output)
  assert (bytes_of['split'], found['split']) == ('parameters', 'eval')
  last = results.read(whole, 'eval')[-1]
  assert found['loss'] == pytest.approx(last['loss'], rel=1e-5)

  lines.write_text(''.join(f'{text[:60]}\n' for text in drawn.TEXTS))
  sizes = '--inputs_length=32', '--max_length=8'
  infer = [sys.executable, 'scripts/infer.py', *flags, *sizes]
  with two_processes([*infer, f'--input={lines}']) as processes:
    printed = [process.communicate(timeout=300)[0] for process in processes]
  rows = [x for out in printed for x in out.splitlines() if x[:1] == '{']
  assert len(rows) == len(drawn.TEXTS) and rows[0] in printed[0]
  alone = subprocess.run(
    [*infer, f'--input={lines}'],
    env=environment(8),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  for one, other in zip(alone.stdout.splitlines(), rows, strict=True):
    one, other = json.loads(one), json.loads(other)
    assert one['inputs'] == other['inputs']
    assert one['score'] == pytest.approx(other['score'], rel=1e-4)


def test_what_is_stopped_and_then_loses_a_process_ends_the_same(
  whole, command, tmp_path
):
  """SIGTERM to one stops both with a checkpoint; supervisors mend a SIGKILL."""
  run = tmp_path / 'run'
  with two_processes(command(run)) as processes:
    wait_for(run, 1006)
    processes[1].send_signal(signal.SIGTERM)
    ends(processes, 75)
  # Saved where it stopped, which is not where it would have saved anyway.
  step = checkpoints.read(run).step
  assert 1006 <= step < 1000 + STEPS - 4
  assert step == max(row['step'] for row in logged(run))

  def supervised(index):
    script = [sys.executable, 'scripts/supervise.py', '--wait=1']
    keep_pid = f'echo $$ > {tmp_path}/pid{index}; exec "$@"'
    return [*script, 'sh', '-c', keep_pid, 'sh']

  with two_processes(command(run), supervised) as processes:
    wait_for(run, step + 2)
    os.kill(int((tmp_path / 'pid1').read_text()), signal.SIGKILL)
    ends(processes, 0)
  same_to_the_bit(run, whole)


def test_surgery_holds_its_own_shards_alone(tmp_path):
  """Each process half of the experts, and of the dense model a leaf."""
  dense = own_shards.model(E=None)
  state = initialize.from_scratch(dense, optim.adafactor(0.1), 0)
  path = str(checkpoints.t5x.write(tmp_path, state.params, 1000))
  module, address = ['-m', 'tests.own_shards'], free_address()
  processes = [
    subprocess.Popen(
      [sys.executable, *module, path, address, str(i)],
      env=environment(1),
      cwd=ROOT,
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  for process in processes:
    output, _ = process.communicate(timeout=300)
    found = json.loads(output[output.index('{') :])
    assert found['own'] > 4e8
    assert found['grown'] <= 1.15 * found['own'] + found['leaf'], found
