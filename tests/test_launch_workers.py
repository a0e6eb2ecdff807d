# SPDX-License-Identifier: Apache-2.0
"""What the launcher tells the workers of a slice, done by them."""

import fcntl
import os
import re
import tarfile
import time

import pytest

from tests.fake_cloud import ARGS, FLAGS, PLACE, ROOT, call, names, tpu


def commands(fakes):
  """What workers are told, by the name of the call."""
  flags = [*FLAGS, '--dry-run', '--', *ARGS]
  shown, _ = tpu(fakes, *flags)
  stopped, _ = tpu(fakes, *PLACE, '--dry-run', '--stop')
  _, calls = call(fakes, 'bash', '-c', shown.stdout + stopped.stdout)
  ssh = [c for c in calls if 'ssh' in c[0]]
  told = [argv[7].removeprefix('--command=') for argv, _ in ssh]
  return dict(zip(names(ssh), told, strict=True))


PYTHON = """\
#!/usr/bin/env bash
printf '%s\\0' "$PWD" "$TFDS_DATA_DIR" "$@" > ~/argv
for ((i = 0; i < 1000; i++)); do
  [[ ! -s ~/go ]] || exit "$(cat ~/go)"
  sleep 0.02
done
"""


@pytest.fixture
def home(tmp_path):
  """A worker's home, in which training ends with what ~/go says."""
  folder = tmp_path / 'home'
  python = folder / 'upcycle/.venv/bin/python'
  python.parent.mkdir(parents=True)
  (folder / 'bucket').mkdir()
  python.write_text(PYTHON)
  python.chmod(0o755)
  return folder


def until(condition):
  end = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


def test_a_worker_runs_the_command_once_and_says_how_it_ended(fakes, home):
  told = commands(fakes)

  def worker(name):
    env = {'HOME': str(home)}
    done, _ = call(fakes, 'bash', '-c', told[name], env=env, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout

  assert worker('ask') == 'lost\n'
  worker('train')
  until((home / 'argv').exists)
  until(lambda: (home / 'argv').read_text().endswith('\0'))
  project, bucket = home / 'upcycle', home / 'bucket'
  assert (home / 'argv').read_text().split('\0')[:-1] == [
    str(bucket),
    str(bucket / 'tensorflow_datasets'),
    str(project / 'scripts/supervise.py'),
    str(project / '.venv/bin/python'),
    str(project / 'scripts/train.py'),
    '--distributed=auto',
    *ARGS,
  ]
  assert worker('ask') == 'running\n'
  (home / 'argv').unlink()
  worker('train')
  worker('install')
  assert (project / '.venv/bin/python').exists()
  assert worker('ask') == 'running\n'
  (home / 'go').write_text('75')
  until(lambda: worker('ask') == '75\n')
  assert not (home / 'argv').exists(), 'it was started twice'
  assert [x.name for x in (bucket / 'logs/xl').iterdir()] == [
    f'{os.uname().nodename}.log'
  ]
  # The end before is not that of the next run.
  (home / 'go').unlink()
  worker('train')
  until((home / 'argv').exists)
  assert worker('ask') == 'running\n' and not (home / 'run.exit').exists()
  (home / 'go').write_text('0')
  until(lambda: worker('ask') == '0\n')


def test_a_worker_installs_the_project_and_mounts_the_bucket(fakes, home):
  told = commands(fakes)
  with tarfile.open(home / 'upcycle.tar.gz', 'w:gz') as tar:
    tar.add(ROOT / 'Makefile', 'Makefile')
  uv = home / 'uv/bin/uv'
  uv.parent.mkdir(parents=True)
  uv.symlink_to(fakes / 'uv')
  # There the stand-in looks for its files when it is called by that link.
  for file in ('calls', 'answers'):
    (uv.parent / file).symlink_to(fakes / file)

  def worker(name, **answers):
    env = {'HOME': str(home)}
    command = 'bash', '-c', told[name]
    done, calls = call(fakes, *command, answers=answers, env=env, cwd=home)
    assert done.returncode == 0, done.stderr
    return [argv for argv, _ in calls]

  with (home / 'run.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert not worker('install')
  pip, venv, *installs = worker('install')
  version = re.search('UV_VERSION := (.*)', (ROOT / 'Makefile').read_text())[1]
  assert pip[:3] == ['python3', '-m', 'pip'] and pip[-1] == f'uv=={version}'
  assert venv[:2] == ['uv', 'venv']
  wanted = ['requirements.lock', '.', 'jax[tpu]']
  assert [argv[-1] for argv in installs] == wanted
  (mounted,) = worker('mount', mountpoint=[0])
  assert mounted[0] == 'mountpoint'
  _, gcsfuse = worker('mount', mountpoint=[1])
  assert gcsfuse[0] == 'gcsfuse' and gcsfuse[-2:] == ['bucket', 'bucket']


def test_only_the_supervisor_is_told_to_stop(fakes):
  told = commands(fakes)
  pattern = re.search(r'pkill -TERM -f "([^"]+)"', told['stop'])[1]
  python = '~/upcycle/.venv/bin/python'
  supervisor = f'{python} ~/upcycle/scripts/supervise.py {python} train.py'
  assert re.search(pattern, supervisor)
  for other in (
    f'bash -c {told["train"]}',
    f'bash -c {told["stop"]}',
    f'{python} ~/upcycle/scripts/train.py --distributed=auto',
  ):
    assert not re.search(pattern, other)
