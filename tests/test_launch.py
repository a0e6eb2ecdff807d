# SPDX-License-Identifier: Apache-2.0
"""Launchers and the supervisor, with stand-ins for what they call."""

import fcntl
import json
import math
import os
from pathlib import Path
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import gin
import pytest
import yaml

ROOT = Path(__file__).parent.parent
TPU, SLURM = (ROOT / f'scripts/launch_{x}.sh' for x in ('tpu', 'slurm'))
GKE = ROOT / 'scripts/launch_gke.yaml'
# Arguments that a shell could spoil.
ARGS = [
  '--gin_file=configs/upcycle_t5_xl.gin',
  "--gin.MODEL_DIR='runs/xl'",
  '--gin.LENGTHS={\'inputs\': 8, "targets": 4}',
  '--gin.A=$HOME `date` \\ * ; & | < > !',
  '',
]
PLACE = ['--name=xl', '--zone=us-east5-a']
FLAGS = [*PLACE, '--bucket=gs://bucket', '--poll=0']

# Writes down what it is called with. Of the answers to calls in which a text
# occurs it gives the next: an exit code, or what it prints.
FAKE = f"""#!{sys.executable} -IS
import json, os, pathlib, sys
folder = pathlib.Path(__file__).parent
argv = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
devices = os.environ.get('JAX_LOCAL_DEVICE_IDS')
with (folder / 'calls').open('a') as file:
  file.write(json.dumps([argv, devices]) + '\\n')
answers = json.loads((folder / 'answers').read_text())
text = next((x for x in answers if x in ' '.join(argv)), None)
if text is not None:
  answer = answers[text].pop(0)
  (folder / 'answers').write_text(json.dumps(answers))
  sys.exit(answer) if isinstance(answer, int) else print(answer)
"""
# What a call is, by a text in it.
CALLS = {
  'buckets describe': 'bucket',
  'git diff': 'diff',
  'git archive': 'pack',
  'queued-resources list': 'look',
  'queued-resources create': 'create',
  'queued-resources delete': 'delete',
  'tpu-vm scp': 'copy',
  'uv venv': 'install',
  'gcsfuse': 'mount',
  'cat run.exit': 'ask',
  'tail': 'log',
  'pkill': 'stop',
  'supervise.py': 'train',
}
PREPARED = ['bucket', 'diff', 'pack']
STARTED = ['copy', 'install', 'mount', 'train']


@pytest.fixture
def fakes(tmp_path):
  folder = tmp_path / 'fakes'
  folder.mkdir()
  (folder / 'fake').write_text(FAKE)
  (folder / 'fake').chmod(0o755)
  names = 'gcloud git srun scontrol python3 uv gcsfuse mountpoint'
  for name in names.split():
    (folder / name).symlink_to('fake')
  return folder


def call(fakes, *command, answers=None, env=(), cwd=None):
  """The finished command, and the calls that its stand-ins got."""
  (fakes / 'answers').write_text(json.dumps(answers or {}))
  (fakes / 'calls').write_text('')
  path = f'{fakes}:{os.environ["PATH"]}'
  done = subprocess.run(
    [*map(str, command)],
    cwd=cwd or fakes.parent,
    env={**os.environ, 'PATH': path, **dict(env)},
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=False,
    timeout=30,
  )
  lines = (fakes / 'calls').read_text().splitlines()
  return done, [json.loads(line) for line in lines]


def tpu(fakes, *flags, **options):
  """The launcher on a Cloud TPU, in a project of its own."""
  scripts = fakes.parent / 'project/scripts'
  scripts.mkdir(parents=True, exist_ok=True)
  shutil.copy(TPU, scripts)
  return call(fakes, 'bash', scripts / TPU.name, *flags, **options)


def names(calls):
  texts = [' '.join(argv) for argv, _ in calls]
  return [next(CALLS[x] for x in CALLS if x in text) for text in texts]


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


@pytest.mark.parametrize('script', [TPU, SLURM], ids=lambda x: x.name)
def test_shells_can_read_it(script):
  checks = [['bash', '-n']]
  if shutil.which('shellcheck'):
    checks.append(['shellcheck', '--severity=warning'])
  for check in checks:
    done = subprocess.run(
      [*check, script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


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


def slurm(fakes, *args, env=(), code=0):
  env = {'SLURM_JOB_ID': '7', 'SLURM_GPUS_ON_NODE': '4', **dict(env)}
  return call(fakes, 'bash', SLURM, *args, answers={'srun': [code]}, env=env)


def test_slurm_runs_one_process_a_host_with_all_its_gpus(fakes):
  done, calls = slurm(fakes, *ARGS)
  assert done.returncode == 0, done.stderr
  train = ['python', 'scripts/train.py', *ARGS, '--distributed=auto']
  supervise = ['python', 'scripts/supervise.py']
  srun = ['srun', '--kill-on-bad-exit=1', *supervise, *train]
  assert calls == [[srun, '0,1,2,3']]
  assert '#SBATCH --ntasks-per-node=1\n' in SLURM.read_text()


@pytest.mark.parametrize('code, again', [(0, False), (1, False), (75, True)])
def test_slurm_queues_up_again_after_75_alone(code, again, fakes):
  done, calls = slurm(fakes, *ARGS, code=code)
  assert done.returncode == code
  requeued = [argv for argv, _ in calls if argv[0] == 'scontrol']
  assert requeued == ([['scontrol', 'requeue', '7']] if again else [])


def test_slurm_array_runs_a_line(fakes, tmp_path):
  file = tmp_path / 'runs.txt'
  runs = [['python', 'scripts/train.py', *ARGS, f'--x={n}'] for n in range(3)]
  file.write_text(''.join(f'{shlex.join(run)}\n' for run in runs))
  done, calls = slurm(fakes, file, env={'SLURM_ARRAY_TASK_ID': '2'})
  assert done.returncode == 0, done.stderr
  assert calls[0][0][4:] == [*runs[1], '--distributed=auto']


def test_gke_manifest():
  jobset = yaml.safe_load(GKE.read_text())
  assert jobset['kind'] == 'JobSet'
  spec = jobset['spec']['replicatedJobs'][0]['template']['spec']
  pod = spec['template']['spec']
  container = pod['containers'][0]
  topology = pod['nodeSelector']['cloud.google.com/gke-tpu-topology']
  chips = math.prod(map(int, topology.split('x')))
  hosts = chips // container['resources']['limits']['google.com/tpu']
  assert spec['parallelism'] == spec['completions'] == hosts
  # Exit code 75 and a host that goes fail the job in a way that restarts all.
  disrupted, codes = spec['podFailurePolicy']['rules']
  assert disrupted['action'] == codes['action'] == 'FailJob'
  assert disrupted['onPodConditions'][0]['type'] == 'DisruptionTarget'
  assert codes['onExitCodes']['containerName'] == container['name']
  values = codes['onExitCodes']['values']
  assert 75 in values and not {0, 1, 2} & set(values)
  policy = jobset['spec']['failurePolicy']
  assert policy['maxRestarts'] == 0 and len(policy['rules']) == 1
  rule = policy['rules'][0]
  assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  assert spec['backoffLimit'] == 0 and pod['restartPolicy'] == 'Never'
  # What is mounted is what the run is in.
  mount = container['volumeMounts'][0]
  assert mount['mountPath'] == container['workingDir']
  assert mount['name'] == pod['volumes'][0]['name']
  command = container['command']
  assert command[1].endswith('/scripts/train.py')
  assert '--distributed=auto' in command
  config = next(x for x in command if x.startswith('--gin_file='))
  assert (ROOT / config.removeprefix('--gin_file=')).is_file()


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


def test_the_gin_file_of_the_docs(tmp_path, monkeypatch):
  text = (ROOT / 'docs/pods.md').read_text()
  block = text[text.index('    from __gin__') : text.index('\nThe product of')]
  file = tmp_path / 'mesh.gin'
  file.write_text(block.replace('    ', ''))
  monkeypatch.syspath_prepend(ROOT / 'scripts')
  import gin_flags

  args = ['--gin_file=configs/upcycle_t5_xl.gin', f'--gin_file={file}']
  args.append('--gin.partition.make_mesh.model=4')
  monkeypatch.setattr(sys, 'argv', ['train.py', *args])
  try:
    gin_flags.parse('', complete=False)
    found = gin.config_str()
  finally:
    gin.clear_config()
  assert 'train.train.make_mesh = @partition.make_mesh' in found
  assert 'partition.make_mesh.model = 4' in found
  assert 'moe.MoeConfig.exchange = @exchange.pipelined' in found
