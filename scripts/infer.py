# SPDX-License-Identifier: Apache-2.0
r"""Generates text with any checkpoint of a T5: a line in, a line of JSON out.

  echo 'spam email: You have won a prize!' | python scripts/infer.py \
    --gin_file=configs/finetune_t5_laptop.gin \
    --gin.MODEL_DIR="'runs/t5_laptop/finetune'"
  python scripts/infer.py --gin_file=configs/upcycle_t5_base.gin \
    --vocabulary=data/vocabularies/t5.model --checkpoint=... \
    --input=inputs.txt --beams=4 > outputs.jsonl

A line may also be a JSON object with "inputs", as those of the prepared tasks.
Results are printed batch by batch, as they come; progress goes to standard
error. Greedy is the default; --temperature draws, --beams searches. On several
hosts the command is given on each of them, with --distributed and an input file
that all have; the first one prints.
"""

import json
import sys

import gin_flags

_FLAGS = {
  'checkpoint': ('whose model; the run in MODEL_DIR if not given', ''),
  'vocabulary': (
    'a SentencePiece .model file or a tokenized corpus; if not given, what the '
    'gin files bind to their data',
    '',
  ),
  'input': ('a file of lines; - is standard input', '-'),
  'batch_size': ('lines decoded together; 1 answers each line at once', '32'),
  'inputs_length': ('most tokens of an input', '512'),
  'max_length': ('most tokens to generate', '64'),
  'beams': ('of a beam search; 0: none', '0'),
  'alpha': ("exponent of a beam search's length penalty", '0.6'),
  'temperature': ('draws tokens; 0 takes the most probable', '0'),
  'top_p': ('draws from the most probable that sum to it', '1'),
  'top_k': ('draws from that many most probable; 0: all', '0'),
  'samples': ('drawn for each line', '1'),
  'seed': ('of what is drawn', '0'),
  'distributed': gin_flags.DISTRIBUTED,
}
_DRAWING = 'temperature', 'top_p', 'top_k', 'samples'


def main() -> None:
  args = gin_flags.parse(__doc__, complete=False, **_FLAGS)
  strategy = _strategy(args)
  if args.distributed and args.input == '-':
    raise ValueError('--distributed wants --input: a file that all hosts have.')
  gin_flags.join(args.distributed)
  import jax
  from rich import console, progress

  from upcycle import (
    checkpoints,
    evaluate_checkpoint,
    infer,
    partition,
    train,
  )
  from upcycle.data import vocabulary

  model = gin_flags.bound(train.train, 'model')
  words = vocabulary.load(
    args.vocabulary or _vocabulary(), vocab_size=model.config.vocab_size
  )
  path = args.checkpoint or gin_flags.bound(train.train, 'model_dir')
  mesh = gin_flags.bound(train.train, 'make_mesh', partition.make_mesh)
  columns = (
    progress.SpinnerColumn(),
    '{task.description}',
    progress.MofNCompleteColumn(),
    progress.TimeElapsedColumn(),
  )
  screen, first = console.Console(stderr=True), jax.process_index() == 0
  with (
    jax.set_mesh(mesh(model.num_experts())),
    progress.Progress(
      *columns, console=screen, transient=True, disable=not first
    ) as bar,
    sys.stdin if args.input == '-' else open(args.input) as lines,
  ):
    task = bar.add_task(f'read {path}', total=None)
    params = evaluate_checkpoint.parameters(checkpoints.read(path), model)
    bar.update(task, description='lines', completed=0)
    for row in infer.infer(
      *(model, params, map(_text, lines), words),
      strategy=strategy,
      inputs_length=int(args.inputs_length),
      max_length=int(args.max_length),
      batch_size=int(args.batch_size),
      seed=int(args.seed),
    ):
      if first:
        print(json.dumps(row, ensure_ascii=False), flush=True)
      bar.advance(task)


def _strategy(args):
  """What the flags say, unless some contradict others."""
  from upcycle import decode

  given = [
    name
    for name in ('beams', 'alpha', *_DRAWING)
    if float(getattr(args, name)) != float(_FLAGS[name][1])
  ]
  searches, draws = 'beams' in given, 'temperature' in given
  refused = {
    'with --beams': _DRAWING if searches else (),
    'without --beams': () if searches else ('alpha',),
    'without --temperature': () if searches or draws else _DRAWING,
  }
  wrong = [
    f'--{name} {why}'
    for why, names in refused.items()
    for name in names
    if name in given
  ]
  if wrong:
    raise ValueError(f'Flags that would do nothing: {", ".join(wrong)}.')
  if searches:
    return decode.Beam(int(args.beams), float(args.alpha))
  return decode.Sampling(
    float(args.temperature),
    int(args.top_k),
    float(args.top_p),
    int(args.samples),
  )


def _text(line: str) -> str:
  """A line's input: the line, or what it has as JSON."""
  try:
    return str(json.loads(line)['inputs'])
  except (ValueError, KeyError, TypeError):
    return line.rstrip('\n')


def _vocabulary() -> str:
  """What the gin files bind to the data of text."""
  from upcycle.data import text

  for function, name in (
    (text.text_pairs, 'vocabulary_path'),
    (text.span_corruption, 'corpus'),
  ):
    found = gin_flags.bound(function, name, None)
    if found:
      return found
  raise ValueError('The gin files name no vocabulary: give --vocabulary.')


if __name__ == '__main__':
  gin_flags.run(main)
