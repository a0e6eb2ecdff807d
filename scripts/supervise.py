# SPDX-License-Identifier: Apache-2.0
r"""Runs a command, and again when it ends for a reason that passes.

  python scripts/supervise.py python scripts/train.py --distributed=auto ...

It is started anew when it ends with exit code 75, as a preempted run or one
whose other processes are gone does, or by a signal. Exit code 0 and all others,
an error to mend, end the supervisor too. SIGTERM is passed on, and then the
supervisor ends with the command's exit code: the machine is taken away.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

SOON = 600  # seconds: whoever ends as soon again and again will always


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--restarts',
    type=int,
    default=10,
    help='at most, of runs that end within ten minutes',
  )
  parser.add_argument('--wait', type=float, default=10, help='seconds between')
  parser.add_argument('command', nargs=argparse.REMAINDER)
  args = parser.parse_args()
  if not args.command:
    parser.error('which command?')
  asked, children = [], []

  def pass_on(number, _):
    asked.append(number)
    if children:
      children[-1].send_signal(number)

  signal.signal(signal.SIGTERM, pass_on)
  code, early = os.EX_TEMPFAIL, 0
  while not asked:
    began = time.monotonic()
    children.append(subprocess.Popen(args.command))
    if asked:  # while it was being started
      children[-1].send_signal(asked[0])
    code = children[-1].wait()
    early = early + 1 if time.monotonic() - began < SOON else 0
    passes = code == os.EX_TEMPFAIL or code < 0
    if asked or not passes or early > args.restarts:
      break
    print(
      f'Ended with {code}; started again in {args.wait:g} s.',
      file=sys.stderr,
      flush=True,
    )
    time.sleep(args.wait)
  # As shells say that a signal ended it.
  return code if code >= 0 else 128 - code


if __name__ == '__main__':
  sys.exit(main())
