# SPDX-License-Identifier: Apache-2.0
"""Prepares data sets: text to tokens, images to arrays, text-to-text tasks.

  python scripts/prepare_data.py text
  python scripts/prepare_data.py text --vocabulary=t5 --directory=data
  python scripts/prepare_data.py images
  python scripts/prepare_data.py images --sets=glyphs,mnist --families=8
  python scripts/prepare_data.py tasks

What is there already is verified and kept.
"""

import argparse
import sys

from upcycle.data import corpora, prepare, prepare_images, prepare_tasks


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest='what', required=True)
  text = commands.add_parser(
    'text', help='fetch, verify, clean, train a vocabulary, tokenize'
  )
  text.add_argument(
    '--vocabulary', help="'small', 't5' or the file of a SentencePiece model"
  )
  text.add_argument(
    '--vocab_size', type=int, help='pieces of the small vocabulary'
  )
  text.add_argument('--mix', choices=sorted(corpora.MIXES))
  text.add_argument('--directory', help="a cache folder, 'data' if not given")
  text.set_defaults(run=prepare.prepare)
  images = commands.add_parser(
    'images', help='fetch, verify, draw glyphs, decode, split'
  )
  images.add_argument(
    '--sets',
    type=lambda names: [n for n in names.split(',') if n],
    help='all if not given',
  )
  images.add_argument(
    '--families',
    type=lambda n: int(n) if n.isdecimal() else n,
    help='of fonts: how many to train on, or the file of a list like '
    'upcycle/data/families.txt',
  )
  images.add_argument('--directory', help="a cache folder, 'data' if not given")
  images.set_defaults(run=prepare_images.prepare)
  tasks = commands.add_parser(
    'tasks', help='fetch, verify, make text-to-text tasks, score baselines'
  )
  tasks.add_argument('--directory', help="a cache folder, 'data' if not given")
  tasks.set_defaults(run=prepare_tasks.prepare)
  flags = vars(parser.parse_args())
  run, _ = flags.pop('run'), flags.pop('what')
  try:
    run(**{name: value for name, value in flags.items() if value is not None})
  except (OSError, RuntimeError, ValueError) as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
