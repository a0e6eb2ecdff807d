# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for what launchers call, and calls of launchers."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

ROOT = Path(__file__).parent.parent
TPU = ROOT / 'scripts/launch_tpu.sh'
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


def install(folder: Path) -> Path:
  """Puts the stand-ins into a new folder."""
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
