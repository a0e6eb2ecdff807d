# SPDX-License-Identifier: Apache-2.0
"""What runs write: read again, resumed, drawn."""

import json
import math
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from upcycle import results
from upcycle.results.metrics import heat_map


def write(folder, steps, **options):
  with results.Writer(folder, **options) as writer:
    for step in steps:
      writer.write(step, 'train', {'loss': np.float32(1 / step)})
      if step % 4 == 0:
        writer.write(step, 'eval', {'loss': 0.5, 'accuracy': step / 10})


def lines(folder):
  return (folder / 'metrics.jsonl').read_text().splitlines()


def events(folder):
  """(step, event) of all event files, in the order of their making."""
  from tensorboardX.proto import event_pb2

  for file in sorted(folder.glob('events*'), key=lambda f: f.stat().st_mtime):
    data = file.read_bytes()
    while data:
      (size,) = struct.unpack('<Q', data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      yield event.step, event
      data = data[16 + size :]


def test_a_line_is_a_json_object(tmp_path):
  values = {
    'loss': np.float32(0.1),
    'seconds': 1.25,
    'tokens': np.int64(7),
    'device': jnp.float32(2.5),
    'low': jnp.bfloat16(0.5),
    'mlp/load': jnp.array([0.25, 0.75]),
  }
  with results.Writer(tmp_path / 'run') as writer:
    writer.write(3, 'train', values)
    # Readable at once: a run may be watched, or killed.
    (line,) = lines(tmp_path / 'run')
  assert line == (
    '{"step": 3, "split": "train", "loss": 0.1, "seconds": 1.25, '
    '"tokens": 7, "device": 2.5, "low": 0.5, "mlp/load": [0.25, 0.75]}'
  )


def test_words_are_written_and_a_line_once(tmp_path):
  with results.Writer(tmp_path) as writer:
    writer.write_once(1, 'cost', {'cpu': 'a', 'cores': 2})
    writer.write(2, 'train', {'loss': 1.0})
    writer.write(3, 'cost', {'cpu': 'a', 'cores': 2, 'memory': 5})
    writer.write_once(4, 'cost', {'cpu': 'a', 'cores': 2})
    writer.write_once(5, 'cost', {'cpu': 'b', 'cores': 2})
  rows = results.read(tmp_path, 'cost')
  assert [(row['step'], row['cpu']) for row in rows] == [
    (1, 'a'),
    (3, 'a'),
    (5, 'b'),
  ]


def test_null_stands_for_what_is_not_finite(tmp_path):
  values = {'a': np.nan, 'b': np.float32(-np.inf), 'c': [1.0, np.inf]}
  with results.Writer(tmp_path) as writer:
    writer.write(1, 'train', values)
  assert json.loads(lines(tmp_path)[0], parse_constant=pytest.fail) == {
    'step': 1,
    'split': 'train',
    'a': None,
    'b': None,
    'c': [1.0, None],
  }
  (row,) = results.read(tmp_path)
  assert math.isnan(row['a'])
  assert math.isnan(row['b'])


def test_floats_are_what_they_were(tmp_path):
  values = np.random.RandomState(0).randn(100).astype(np.float32)
  with results.Writer(tmp_path) as writer:
    for step, value in enumerate(values):
      writer.write(step, 'train', {'loss': value, 'double': float(value) / 3})
  rows = results.read(tmp_path)
  np.testing.assert_array_equal(
    np.float32(results.curve(rows, 'loss')[1]), values
  )
  np.testing.assert_array_equal(
    results.curve(rows, 'double')[1], values.astype(float) / 3
  )


@pytest.mark.parametrize('cut', ['', '{"step": 11, "spl', '{"step": 2}'])
def test_a_resumed_run_leaves_the_file_of_one_that_was_not_killed(
  tmp_path, cut
):
  write(tmp_path / 'whole', range(1, 13))
  write(tmp_path / 'killed', range(1, 11))
  with (tmp_path / 'killed' / 'metrics.jsonl').open('a') as file:
    file.write(cut)
  write(tmp_path / 'killed', range(9, 13), resume_step=8)
  assert lines(tmp_path / 'killed') == lines(tmp_path / 'whole')
  assert not list(tmp_path.rglob('*.tmp'))


def test_a_run_begun_anew_keeps_nothing(tmp_path):
  write(tmp_path / 'whole', range(5, 9))
  write(tmp_path / 'killed', range(5, 7))
  write(tmp_path / 'killed', range(5, 9), resume_step=-1)
  assert lines(tmp_path / 'killed') == lines(tmp_path / 'whole')


def test_writing_without_a_step_to_resume_from_appends(tmp_path):
  write(tmp_path, range(1, 4))
  write(tmp_path, range(1, 4))
  assert len(lines(tmp_path)) == 6


def test_one_process_writes(tmp_path):
  write(tmp_path / 'run', range(1, 4), enabled=False)
  assert not list(tmp_path.iterdir())


def test_tensorboard_has_every_value(tmp_path):
  with results.Writer(tmp_path) as writer:
    values = {'loss': 2.0, 'a/load': np.ones(8) / 8, 'b/load': np.ones(4) / 4}
    writer.write(5, 'train', values)
  found = {
    value.tag: (step, value)
    for step, event in events(tmp_path)
    for value in event.summary.value
  }
  assert set(found) == {'train/loss', 'train/load'}
  assert found['train/loss'][0] == 5
  assert found['train/loss'][1].simple_value == 2.0
  # Two layers, and the experts of the wider one.
  image = found['train/load'][1].image
  assert (image.height, image.width) == (2 * 12, 8 * 12)


def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path):
  write(tmp_path, range(1, 11))
  write(tmp_path, range(9, 11), resume_step=8)
  starts = [
    step for step, event in events(tmp_path) if event.HasField('session_log')
  ]
  assert starts == [9]


def test_heat_map_is_white_where_experts_are_balanced():
  image = heat_map([[0.25] * 4, [0.0, 1.0, 0.0, 0.0], [0.5, 0.5]], size=2)
  assert image.shape == (6, 8, 3)
  assert (image[:2] == 255).all()
  red, green, blue = image[2, 2].astype(int)
  assert red > blue > green
  red, green, blue = image[2, 0].astype(int)
  assert blue > green > red
  assert (image[4:] == 255).all()


def test_read_by_split_folder_and_file(tmp_path):
  write(tmp_path, range(1, 9))
  assert [row['step'] for row in results.read(tmp_path, 'eval')] == [4, 8]
  assert results.read(tmp_path / 'metrics.jsonl') == results.read(tmp_path)
  with pytest.raises(FileNotFoundError, match='nowhere'):
    results.read(tmp_path / 'nowhere')


def test_read_leaves_out_a_last_line_that_was_cut_off(tmp_path):
  file = tmp_path / 'metrics.jsonl'
  file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
  assert results.read(file) == [{'step': 1, 'loss': 2.0}]


def test_read_names_all_lines_that_are_no_json(tmp_path):
  file = tmp_path / 'metrics.jsonl'
  file.write_text('{"step": 1}\nx\n{"step": 2}\ny\n')
  with pytest.raises(ValueError, match=r'lines \[2, 4\] are no JSON'):
    results.read(file)


def test_curve_is_of_rows_that_have_the_value(tmp_path):
  write(tmp_path, range(1, 9))
  rows = results.read(tmp_path)
  steps, values = results.curve(rows, 'accuracy')
  np.testing.assert_array_equal(steps, [4, 8])
  np.testing.assert_allclose(values, [0.4, 0.8])
  x, _ = results.curve(rows, 'loss', x='accuracy')
  np.testing.assert_allclose(x, [0.4, 0.8])
  assert results.curve(rows, 'nothing')[0].shape == (0,)


def test_interval_is_that_of_the_mean():
  values = np.random.RandomState(0).randn(400, 2) * [1, 10] + [3, 0]
  low, high = results.interval(values)
  # 1.96 standard errors to each side, for so many.
  error = 1.96 * values.std(0) / 20
  np.testing.assert_allclose(low, values.mean(0) - error, atol=0.02 * error[1])
  np.testing.assert_allclose((high - low) / 2, error, rtol=0.05)
  again = results.interval(values)
  np.testing.assert_array_equal(again, (low, high))
  narrow = results.interval(values, level=0.5)
  assert (narrow[0] > low).all()
  assert (narrow[1] < high).all()
  assert results.interval([4.0]) == (4.0, 4.0)


def test_progress_prints_lines_now_and_then(capsys):
  with results.Progress(100, 200, every=3600) as progress:
    for step in range(101, 201):
      progress.update(step, loss=jnp.float32(3.25), tokens_per_second=12345.6)
  out = capsys.readouterr().out.splitlines()
  assert out == [
    'step 101/200  loss 3.25  12.3k tokens/s',
    'step 200/200  loss 3.25  12.3k tokens/s',
  ]


def test_progress_estimates_the_time_left(capsys, monkeypatch):
  clock = iter(range(0, 1000, 10))
  monkeypatch.setattr('time.monotonic', lambda: next(clock))
  with results.Progress(0, 1000, every=15) as progress:
    for step in (1, 2, 3, 4):
      progress.update(step, loss=1.0)
  assert capsys.readouterr().out.splitlines() == [
    'step 1/1,000  loss 1',
    # 20 seconds for 2 steps, 997 are left.
    'step 3/1,000  loss 1  ETA 2:46:10',
  ]


def test_progress_waits_for_no_value_it_does_not_show(capsys):
  class Busy:
    def __float__(self):
      raise AssertionError('waited for')

  with results.Progress(0, 10, every=3600) as progress:
    progress.update(1, loss=1.0)
    progress.update(2, loss=Busy())
  with results.Progress(0, 1, enabled=False) as progress:
    progress.update(1, loss=Busy())
  assert capsys.readouterr().out == 'step 1/10  loss 1\n'


def test_progress_on_a_terminal(capsys, monkeypatch):
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '120')
  with results.Progress(0, 2) as progress:
    for step in (1, 2):
      progress.update(step, loss=0.5)
  out = capsys.readouterr().out
  assert 'step 2/2  loss 0.5' in out
  assert '\x1b[2K' in out  # one line, drawn anew


def rows(first, last=1.0, steps=(1000, 1010, 1020, 1030), shift=0.0):
  values = [first, *np.linspace(last + 0.3, last, len(steps) - 1)]
  return [
    {'step': s, 'split': 'eval', 'loss': v + shift, 'seconds': (s - 990) * 60}
    for s, v in zip(steps, values, strict=True)
  ]


def drawn(monkeypatch, arms, **options):
  """The figure, as it is handed over to be saved."""
  figures = []

  def keep(figure, path):
    figures.append(figure)
    return []

  monkeypatch.setattr('upcycle.results.figures.save', keep)
  results.comparison_figure('unused', arms, **options)
  return figures[0]


def test_comparison_figure_writes_equal_files_for_equal_runs(tmp_path):
  arms = {'dense': rows(1.4), 'upcycled': [rows(3.0), rows(3.0, shift=0.1)]}
  first, second = (
    results.comparison_figure(
      tmp_path / i / 'figure', arms, dense={'loss': 1.4}
    )
    for i in 'ab'
  )
  assert [f.name for f in first] == ['figure.svg', 'figure.png']
  for one, other in zip(first, second, strict=True):
    assert one.read_bytes() == other.read_bytes()
  assert len(list(tmp_path.rglob('*.*'))) == 4
  with Image.open(first[1]) as image:
    assert image.size == (1536, 672)


def test_comparison_figure_counts_from_the_first_row(monkeypatch):
  arms = {'dense': rows(1.4), 'upcycled': rows(1.5, 0.9)}
  figure = drawn(
    monkeypatch,
    arms,
    dense={'loss': 1.4},
    metrics={'loss': 'loss of the test'},
  )
  per_step, per_time = figure.axes
  lines = {line.get_label(): line for line in per_step.get_lines()}
  np.testing.assert_array_equal(lines['dense'].get_xdata(), [0, 10, 20, 30])
  np.testing.assert_array_equal(lines['dense checkpoint'].get_ydata(), 1.4)
  lines = {line.get_label(): line for line in per_time.get_lines()}
  np.testing.assert_array_equal(lines['upcycled'].get_xdata(), [0, 10, 20, 30])
  np.testing.assert_allclose(
    lines['upcycled'].get_ydata(), [1.5, 1.2, 1.05, 0.9]
  )
  assert per_time.get_xlabel() == 'extra compute time (minutes)'
  assert per_step.get_ylabel() == 'loss of the test'
  assert per_step.get_ylim() == per_time.get_ylim()


@pytest.mark.parametrize(
  ('first', 'says'), [(1.6, []), (9.0, ['↑ 9']), (-4.0, ['↓ -4'])]
)
def test_comparison_figure_shows_the_initial_drop(monkeypatch, first, says):
  """On its place, or at the edge with its value when far off the others."""
  figure = drawn(monkeypatch, {'dense': rows(1.4), 'upcycled': rows(first)})
  for axis in figure.axes:
    low, high = axis.get_ylim()
    assert high - low < 2
    mark = axis.get_lines()[-1]
    assert (mark.get_xdata() == 0).all()
    assert low < mark.get_ydata()[0] < high
    assert says or mark.get_ydata()[0] == first
    assert [text.get_text() for text in axis.texts] == says


def test_comparison_figure_has_a_row_of_panels_a_metric(monkeypatch):
  """Of rows that have the one metric or the other."""
  more = [{**r, 'accuracy': 0.5 + r['step'] / 1e5} for r in rows(1.4)[::3]]
  other = [{k: v for k, v in r.items() if k != 'loss'} for r in more]
  arms = {'dense': [*rows(1.4), *other]}
  metrics = {'loss': 'loss', 'accuracy': 'precision@1'}
  figure = drawn(monkeypatch, arms, metrics=metrics, dense={'accuracy': 0.505})
  points = [len(axis.get_lines()[0].get_xdata()) for axis in figure.axes]
  assert points == [4, 4, 2, 2]
  assert [a.get_ylabel() for a in figure.axes[::2]] == list(metrics.values())
  assert figure.axes[2].get_ylim()[1] < 0.6


def test_comparison_figure_has_a_band_for_several_runs(monkeypatch):
  three = [rows(1.4, shift=shift) for shift in (0, 0.1, 0.2)]
  arms = {'one': rows(1.4), 'three': three}
  for axis in drawn(monkeypatch, arms).axes:
    (band,) = axis.collections
    x, heights = band.get_paths()[0].vertices.T
    assert heights.min() >= 1.0
    assert heights.max() <= 1.6
    # At the last step the runs are at 1.0, 1.1 and 1.2.
    assert np.ptp(heights[x == x.max()]) == pytest.approx(0.2)
    middle = axis.get_lines()[2].get_ydata()
    np.testing.assert_allclose(middle[-1], 1.1)


@pytest.mark.parametrize(
  'runs', [[], [[]], [rows(1.4), rows(1.4, steps=(1000, 1010, 1021, 1030))]]
)
def test_comparison_figure_refuses_runs_that_do_not_fit(tmp_path, runs):
  with pytest.raises(ValueError, match="'upcycled' must have rows with 'lo"):
    results.comparison_figure(tmp_path / 'x', {'upcycled': runs})
  assert not list(tmp_path.iterdir())


def test_import_is_light():
  code = 'import sys; import upcycle.results; print(*sys.modules)'
  out = subprocess.check_output([sys.executable, '-c', code], text=True)
  loaded = {name.split('.')[0] for name in out.split()}
  assert not loaded & {'matplotlib', 'rich', 'tensorboardX', 'jax', 'PIL'}


@pytest.mark.parametrize(
  'line',
  [
    'train.num_steps = 9',
    'train.make_mesh = @partition.make_mesh',
    'partition.make_mesh.model = 2',
    'make_mesh.model = 2',
    'moe.MoeConfig.exchange = @exchange.pipelined',
    'encoder/moe.MoeConfig.exchange = @exchange.pipelined',
    'exchange.pipelined.chunks = 4',
    "MODEL_DIR = 'b'",
  ],
)
def test_what_a_resumed_run_may_change(line, tmp_path):
  (tmp_path / results.CONFIG).write_text('seed = 0\n')
  results.check_folder(tmp_path, f'seed = 0\n{line}\n')
  with pytest.raises(ValueError, match='other settings'):
    results.check_folder(tmp_path, f'seed = 0\nmoe.{line}x = 1\nseed = 1\n')


def test_a_folder_with_a_half_written_file_alone_is_empty(tmp_path):
  (tmp_path / f'.{results.CONFIG}.new').write_text('seed')
  results.check_folder(tmp_path, 'seed = 0\n')
