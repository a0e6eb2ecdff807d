# SPDX-License-Identifier: Apache-2.0
"""The launcher on Cloud TPUs, with stand-ins for what it calls."""

import re
import subprocess

import pytest

from tests.fake_cloud import ARGS, FLAGS, PLACE, TPU, call, names, tpu

PREPARED = ['bucket', 'diff', 'pack']
STARTED = ['copy', 'install', 'mount', 'train']


def launch(fakes, *flags, states=(), codes=(), **answers):
  """The launcher's end and calls, for these states and workers' codes."""
  answers = {
    'buckets describe': ['True'],
    'queued-resources list': list(states),
    'cat run.exit': list(codes),
    **answers,
  }
  flags = flags or (*FLAGS, '--', *ARGS)
  done, calls = tpu(fakes, *flags, answers=answers)
  return done, names(calls)


def test_help_teaches():
  done = subprocess.run(
    ['bash', TPU, '--help'], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0 and 'bash scripts/launch_tpu.sh' in done.stdout
  known = set(re.findall(r'--[a-z-]+(?=[=)* |]*)', _options()))
  assert len(known) > 10
  assert not [x for x in known if f'  {x}' not in done.stdout and x != '--help']
  assert max(map(len, done.stdout.splitlines())) <= 80


def _options():
  source = TPU.read_text()
  return source[source.index('case $1 in') : source.index('*) die')]


@pytest.mark.parametrize(
  'flags, kind, version, spot',
  [
    ('', 'v5p-128', 'v2-alpha-tpuv5', True),
    ('--on-demand --type=v4-8', 'v4-8', 'tpu-ubuntu2204-base', False),
    ('--spot --type=v5litepod-4', 'v5litepod-4', 'v2-alpha-tpuv5-lite', True),
    ('--type=v6e-8', 'v6e-8', 'v2-alpha-tpuv6e', True),
    ('--type=v6e-8 --version=v9', 'v6e-8', 'v9', True),
  ],
)
def test_dry_run_prints_the_commands_and_runs_none(
  flags, kind, version, spot, fakes
):
  flags = [*FLAGS, '--project=p', '--dry-run', *flags.split(), '--', *ARGS]
  shown, calls = tpu(fakes, *flags)
  assert shown.returncode == 0, shown.stderr
  assert names(calls) == ['diff']
  _, calls = call(fakes, 'bash', '-c', shown.stdout)
  expected = ['bucket', 'pack', 'look', 'create', *STARTED, 'ask']
  assert names(calls) == [*expected, 'delete', 'delete']
  where = ['--zone=us-east5-a', '--project=p', '--quiet']
  node = f'--node-id=xl --accelerator-type={kind} --runtime-version={version}'
  wanted = f'create xl {node}{" --spot" * spot}'.split()
  assert calls[3][0][3:] == ['queued-resources', *wanted, *where]
  files = 'build/xl.tar.gz', 'xl:upcycle.tar.gz'
  assert calls[4][0][3:] == ['tpu-vm', 'scp', *files, '--worker=all', *where]
  for argv, _ in calls[5:9]:
    assert argv[3:7] == ['tpu-vm', 'ssh', 'xl', '--worker=all']
    assert argv[7].startswith('--command=') and argv[8:] == where


@pytest.mark.parametrize(
  'flags, message',
  [
    ([], 'missing: --name, --zone, --bucket, what scripts/train.py gets'),
    ([*FLAGS], 'missing: what scripts/train.py gets, after --.'),
    (['--log', '--zone=z'], 'missing: --name.'),
    ([*FLAGS, '--sopt', '--', 'x'], '--sopt is no option'),
    (['--name', 'xl'], '--name is no option: they look like --name=VALUE'),
    ([*FLAGS, '--name=X L', '--', 'x'], '--name=X L is not made of small'),
    ([*FLAGS, '--bucket=b', '--', 'x'], '--bucket=b is not gs://'),
    ([*FLAGS, '--bucket=gs://b/c', '--', 'x'], 'name of a bucket'),
    ([*FLAGS, '--poll=1m', '--', 'x'], '--poll=1m is not a number'),
    ([*FLAGS, '--type=v5e-8', '--', 'x'], 'which runtime version has --type'),
  ],
)
def test_bad_input_is_one_clear_error(flags, message, fakes):
  done, calls = tpu(fakes, *flags)
  assert done.returncode == 2 and message in done.stderr
  assert len(done.stderr.splitlines()) == 1 and not calls


def test_a_flat_bucket_is_refused_before_anything_is_asked_for(fakes):
  done, calls = launch(fakes, **{'buckets describe': ['']})
  assert done.returncode == 2 and 'hierarchical namespace' in done.stderr
  assert calls == ['bucket']


def test_a_slice_that_is_taken_away_is_asked_for_again(fakes):
  done, calls = launch(
    fakes,
    states=[
      *('', 'WAITING_FOR_RESOURCES', 'ACTIVE', 'ACTIVE'),
      *('SUSPENDING', 'SUSPENDED', '', 'FAILED', '', 'ACTIVE', 'ACTIVE'),
    ],
    codes=['lost\nlost', 'running\nrunning', 'lost\nlost', '0\n0'],
  )
  assert done.returncode == 0, done.stderr
  assert calls == [
    *PREPARED,
    *('look', 'create', 'look'),
    *('look', 'ask', *STARTED),
    *('look', 'ask'),
    *('look', 'look', 'delete', 'look', 'create'),
    *('look', 'delete', 'look', 'create'),
    *('look', 'ask', *STARTED),
    *('look', 'ask', 'delete'),
  ]


@pytest.mark.parametrize(
  'codes, again',
  [
    (['75\n75'], True),  # restarted, as after maintenance
    (['running\n134'], True),  # by SIGABRT, as JAX ends without the others
    (['running\nlost'], True),  # rebooted
    (['running\n0'], False),  # one is done before the other
    ([255], False),  # cannot be asked
    ([''], False),  # has not answered
  ],
)
def test_what_workers_that_were_started_say(codes, again, fakes):
  done, calls = launch(
    fakes, states=['ACTIVE'] * 3, codes=['lost', *codes, '0\n0']
  )
  assert done.returncode == 0, done.stderr
  started = STARTED if again else []
  first = [*PREPARED, 'look', 'ask', *STARTED]
  assert calls == [*first, 'look', 'ask', *started, 'look', 'ask', 'delete']


def test_a_run_that_is_there_is_followed(fakes):
  done, calls = launch(fakes, states=['ACTIVE'] * 2, codes=['running', '0'])
  assert done.returncode == 0, done.stderr
  assert calls == [*PREPARED, 'look', 'ask', 'look', 'ask', 'delete']


def test_a_slice_that_was_kept_takes_the_next_run(fakes):
  flags = [*FLAGS, '--keep', '--', *ARGS]
  done, calls = launch(fakes, *flags, states=['ACTIVE'] * 2, codes=['1', '0'])
  assert done.returncode == 0, done.stderr
  assert calls == [*PREPARED, 'look', 'ask', *STARTED, 'look', 'ask']


def test_an_error_ends_the_run_and_shows_its_log(fakes):
  done, calls = launch(
    fakes, states=['ACTIVE'] * 2, codes=['lost', 'running\n1']
  )
  assert done.returncode == 1 and 'exit code 1' in done.stdout
  assert calls[-3:] == ['ask', 'log', 'delete']


def test_a_slice_that_somebody_deletes_stays_away(fakes):
  done, calls = launch(fakes, states=['ACTIVE', ''], codes=['running'])
  assert done.returncode == 1 and 'deleted' in done.stdout
  assert calls[-2:] == ['ask', 'look']


def test_what_fails_once_is_tried_again(fakes):
  done, calls = launch(
    fakes,
    states=['SUSPENDED', 'SUSPENDED', '', '', 1, 'ACTIVE', 'ACTIVE', 'ACTIVE'],
    codes=['lost', 'lost', '0'],
    **{
      'queued-resources delete': [1, 0, 0],
      'queued-resources create': [1, 0],
      'tpu-vm scp': [255, 0],
    },
  )
  assert done.returncode == 0, done.stderr
  assert calls == [
    *PREPARED,
    *('look', 'delete') * 2,
    *('look', 'create') * 2,
    *('look', 'look', 'ask', 'copy'),
    *('look', 'ask', *STARTED),
    *('look', 'ask', 'delete'),
  ]


def test_what_always_fails_is_given_up(fakes):
  done, calls = launch(fakes, states=[''], **{'queued-resources create': [3]})
  assert done.returncode == 1 and calls == [*PREPARED, 'look', 'create']
  done, calls = launch(
    fakes, states=['ACTIVE'] * 9, codes=['lost'] * 9, **{'uv venv': [1] * 9}
  )
  assert done.returncode == 2 and '--stop gives them back' in done.stderr
  assert calls.count('install') == 5 and 'mount' not in calls


def test_log_and_stop(fakes):
  done, calls = launch(fakes, *PLACE, '--log')
  assert done.returncode == 0 and calls == ['log']
  done, calls = launch(fakes, *PLACE, '--stop', pkill=[255])
  assert done.returncode == 0 and calls == ['stop', 'delete']
