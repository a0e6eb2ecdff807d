# SPDX-License-Identifier: Apache-2.0
"""Shells of launchers, Slurm, GKE, and the gin file of the docs."""

import math
import shlex
import shutil
import subprocess
import sys

import gin
import pytest
import yaml

from tests.fake_cloud import ARGS, ROOT, TPU, call

SLURM = ROOT / 'scripts/launch_slurm.sh'
GKE = ROOT / 'scripts/launch_gke.yaml'


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
