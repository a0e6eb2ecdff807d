# SPDX-License-Identifier: Apache-2.0
"""Prepares data sets: fetches, verifies, cleans and tokenizes public text.

  python scripts/prepare_data.py text
  python scripts/prepare_data.py text --vocabulary=t5 --directory=data

What is there already is verified and kept.
"""

import argparse
import sys

from upcycle.data import corpora, packages, prepare


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
  flags = vars(parser.parse_args())
  run, _ = flags.pop('run'), flags.pop('what')
  try:
    run(**{name: value for name, value in flags.items() if value is not None})
  except (ValueError, RuntimeError, packages.MissingClient) as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
