# SPDX-License-Identifier: Apache-2.0
"""Runs what is missing of experiments, and sums them up.

  python scripts/sweep.py experiments/08_capacity --scale=laptop
  python scripts/sweep.py experiments/* --scale=laptop --jobs=2
  python scripts/sweep.py experiments/08_capacity --scale=base --list

An experiment is a folder with sweep.py: lists of runs by scale in SCALES, and
summary(rows), the words to print at the end. Results go to results.jsonl in
that folder, a line a run. What a run starts from is trained first, once for
all; a run that several experiments ask for is trained once too: MODEL_DIRs are
in runs/sweeps, named by a hash of the settings. The first seed of all
experiments comes before the second: it decides most. The same command goes on
with a sweep that was stopped. --list prints the commands of what is missing,
for a scheduler, in stages that need each other's models, and trains nothing;
again when these have ended, it gathers their results. With --jobs several runs
share the cores, each on its own ones.
"""

import argparse
from collections.abc import Mapping
import contextlib
import datetime
import os
from pathlib import Path
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

from upcycle import results
from upcycle.results import outcomes, sweep

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # sweeps import experiments.arms


class Experiment(NamedTuple):
  """A folder, its runs of one scale, and what sums up their rows."""

  folder: Path
  runs: list[dict[str, Any]]
  summary: Any

  @property
  def file(self) -> Path:
    return self.folder / 'results.jsonl'

  def rows(self) -> list[dict]:
    return results.read(self.file) if self.file.exists() else []


def load(folder: Path, scale: str, names: str) -> Experiment:
  """Of a folder, with the runs whose names match: none at another scale.

  Raises:
    ValueError: runs that are none.
  """
  found = runpy.run_path(str(folder / 'sweep.py'))
  if found['SCALES'] and scale not in found['SCALES']:
    print(
      f'# {folder.name} has no scale {scale}, only {", ".join(found["SCALES"])}'
    )
  runs = [{'scale': scale, **r} for r in found['SCALES'].get(scale, [])]
  sweep.check(runs)
  runs = [run for run in runs if re.search(names, run['name'])]
  return Experiment(folder, runs, found['summary'])


def missing(experiments: list[Experiment]) -> dict[str, sweep.Run]:
  """By MODEL_DIR what is to be run, what others start from before them."""
  left = []
  for experiment in experiments:
    rows = experiment.rows()
    seeds = sorted({run.get('seed', 0) for run in experiment.runs})
    left += [
      (seeds.index(run.get('seed', 0)), run)
      for run in experiment.runs
      if not sweep.find(run, rows, ROOT)
    ]
  left.sort(key=lambda item: item[0])
  chains = ([*sweep.parents(run), run] for _, run in left)
  found = {sweep.model_dir(r, ROOT): r for chain in chains for r in chain}
  return {f: run for f, run in found.items() if not outcomes.known(ROOT / f)}


def start(run: sweep.Run, cores: list[int]) -> subprocess.Popen:
  """Trains a run, or goes on with it, on these cores."""
  folder = ROOT / sweep.model_dir(run, ROOT)
  folder.parent.mkdir(parents=True, exist_ok=True)
  bind = (lambda: os.sched_setaffinity(0, cores)) if cores else None
  with folder.with_suffix('.log').open('w') as log:
    return subprocess.Popen(
      [sys.executable, *sweep.command(run, ROOT)],
      cwd=ROOT, stdout=log, stderr=log, preexec_fn=bind,
      # Ctrl-C is this script's, which then asks them to save their state.
      start_new_session=True,
    )  # fmt: skip


def finish(run: sweep.Run, status: int) -> str:
  """Keeps what came of a run, and returns why it failed.

  One that diverged is a result.
  """
  folder = ROOT / sweep.model_dir(run, ROOT)
  if outcomes.keep(folder):
    return ''
  log = folder.with_suffix('.log')
  return (
    f'{run["name"]} failed with status {status}, {log.relative_to(ROOT)}:\n'
    f'{log.read_text()[-2000:]}\n{shlex.join(sweep.command(run, ROOT))}'
  )


def gather(experiments: list[Experiment]) -> None:
  for experiment in experiments:
    outcomes.gather(experiment.file, experiment.runs, ROOT)


def train(experiments: list[Experiment], jobs: int) -> list[str]:
  """Everything that is missing, `jobs` at a time.

  Returns:
    What failed, and why; all that does not start from it was run.
  """
  waiting = missing(experiments)
  total, began, failures = len(waiting), time.monotonic(), []
  steps, ended = sum(map(length, waiting.values())), 0
  shares = core_shares(jobs)
  running: dict[str, tuple[sweep.Run, subprocess.Popen, list[int]]] = {}
  starts = {  # hashed once, not at every look
    folder: [sweep.model_dir(r, ROOT) for r in sweep.parents(run)]
    for folder, run in waiting.items()
  }
  try:
    while True:
      # Looked for when there is room, for looking takes time from what runs.
      ready = [f for f in waiting if shares and all(map(trained, starts[f]))]
      if not (ready or running):
        break
      for folder in ready[: len(shares)]:
        run, cores = waiting.pop(folder), shares.pop()
        running[folder] = run, start(run, cores), cores
        eta = _eta(time.monotonic() - began, ended, steps)
        print(f'[{total - len(waiting)}/{total}{eta}] {run["name"]}')
      for folder, (run, process, cores) in list(running.items()):
        if process.poll() is not None:
          del running[folder]
          shares.append(cores)
          ended += length(run)
          failures += filter(None, [finish(run, process.returncode)])
          gather(experiments)
      time.sleep(0.5 if running else 0)
  finally:  # they save their state and go on another time
    for _, process, _ in running.values():
      process.terminate()
    for _, process, _ in running.values():
      process.wait()
  failures += [
    f'{run["name"]} starts from one that has no model.'
    for run in waiting.values()
  ]
  return failures


def length(run: sweep.Run) -> int:
  """Steps of a run, to reckon its time by; 1,000 if only its config says."""
  return run['bindings'].get('train.train.num_steps', 1000)


def trained(folder: str) -> bool:
  """Whether it has a model to start from: its run has ended, not diverged."""
  return 'error' not in (outcomes.known(ROOT / folder) or {'error': 'not run'})


def alone() -> contextlib.AbstractContextManager[None]:
  """Refuses a second sweep here, which would train the same runs."""
  return results.held(
    ROOT / 'runs/sweeps',
    'Another sweep runs here. Give it all experiments, or more --jobs.',
  )


def core_shares(jobs: int) -> list[list[int]]:
  """The cores of each job; none are named where there is one job."""
  if jobs == 1 or not hasattr(os, 'sched_getaffinity'):
    return [[]] * jobs
  cores = sorted(os.sched_getaffinity(0))
  return [cores[i::jobs] or cores for i in range(jobs)]


def _eta(seconds: float, ended: int, steps: int) -> str:
  if not ended:
    return ''
  left = datetime.timedelta(seconds=round(seconds / ended * (steps - ended)))
  return f', ETA {left}'


def main() -> None:
  args = _parse()
  folders = [f.resolve() for f in args.experiments if (f / 'sweep.py').exists()]
  experiments = [load(f, args.scale, args.names) for f in folders]
  if not any(experiment.runs for experiment in experiments):
    raise ValueError(
      f'Nothing is to be run: --scale={args.scale} --names='
      f'{args.names} fit no run of what was given.'
    )
  runs = [run for experiment in experiments for run in experiment.runs]
  if args.list:
    try:
      with alone():
        outcomes.collect(runs, ROOT)
        gather(experiments)
    except results.Busy:  # it gathers itself
      print('# A sweep runs here: some of these may be under way.')
    print('\n'.join(commands(missing(experiments))))
    return
  # An end by a signal is one by an error: what runs is told to save.
  for name in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(name) != signal.SIG_IGN:  # as nohup has it
      signal.signal(name, lambda *_: sys.exit(os.EX_TEMPFAIL))
  with alone():
    outcomes.collect(runs, ROOT)
    gather(experiments)
    failures = train(experiments, args.jobs)
  for experiment in experiments:
    rows = experiment.rows()
    found = [sweep.find(run, rows, ROOT) for run in experiment.runs]
    found = [row for row in found if row]
    if found:
      print(f'\n{experiment.folder.name}\n{experiment.summary(found)}')
  if failures:
    sys.exit(
      '\n\n'.join(failures) + '\nThe same command goes on with the sweep.'
    )


def commands(runs: Mapping[str, sweep.Run]) -> list[str]:
  """One line a run, in stages: those of one need the models of those before."""
  stages: dict[int, list[str]] = {}
  for run in runs.values():
    folders = [sweep.model_dir(r, ROOT) for r in sweep.parents(run)]
    if not all(folder in runs or trained(folder) for folder in folders):
      print(f'# {run["name"]} starts from one that has no model.')
      continue
    waits = sum(folder in runs for folder in folders)
    command = shlex.join(['python', *sweep.command(run, ROOT)])
    stages.setdefault(waits, []).append(command)
  lines = []
  for number, stage in sorted(stages.items()):
    lines += [f'# Stage {number + 1}', *stage] if len(stages) > 1 else stage
  return lines


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('experiments', type=Path, nargs='+', help='folders')
  parser.add_argument('--scale', required=True, help='a key of their SCALES')
  parser.add_argument('--names', default='', help='only runs that match it')
  parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
  parser.add_argument(
    '--list', action='store_true', help='prints one command a run'
  )
  return parser.parse_args()


if __name__ == '__main__':
  try:
    main()
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')
