# SPDX-License-Identifier: Apache-2.0
"""The report: its numbers, its verdicts, its pages, also as a browser has them.

Experiments are three: one with what a diverged run and one that was not made
leave, one that has not begun, and one whose rows are chosen and have no curves.
"""

from html.parser import HTMLParser
import json
import re
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest

from experiments import arms
from tests import tiny_scripts
from upcycle import results
from upcycle.results import (
  report,
  report_figures,
  report_pages,
  report_parts,
  report_values,
  sweep,
  verdicts,
)

CORE = """
from upcycle.results import verdicts
from upcycle.results.verdicts import Check
CLAIMS, TITLE, QUESTION, PAPER = ('C1', 'C2'), 'Core', 'Better?', 'P & Q: < 1.'
METRICS = {'language': 'eval/loss', 'vision': 'eval/accuracy'}
SCALES = {'laptop': [
  {'name': f'{m}_{arm}_{seed}', 'modality': m, 'arm': arm, 'seed': seed,
   'metric': metric, 'config': 'configs/dense_t5_laptop.gin', 'bindings': {}}
  for m, metric in METRICS.items() for seed in range(3)
  for arm in ('dense', 'upcycled')
], 'base': []}
CHECKS = (
  Check('upcycled', 'dense'), Check('upcycled', 'dense', 'FLOPs'),
  Check('dense', 'upcycled', 'seconds', decides=False),
)
NOTES = {'laptop': 'Few & small.'}
summary = verdicts.summary(CHECKS)
"""
WAITING = CORE.replace("'C1', 'C2'", "'C8',").replace('Core', 'Waiting')
CHOSEN = """
from upcycle.results.verdicts import Check
CLAIMS, TITLE, QUESTION, PAPER = ('C3',), 'Finetuning', 'Still?', 'Figure 3.'
SCALES = {'laptop': [
  {'name': f'{arm}_{rate}_{seed}', 'arm': arm, 'seed': seed, 'rate': rate,
   'config': 'configs/dense_t5_laptop.gin', 'bindings': {}}
  for arm in ('dense', 'upcycled') for seed in range(3) for rate in (1, 2)
]}
ENTRIES = {'modality': 'vision', 'metric': 'test/accuracy'}
CHECKS = (Check('upcycled', 'dense', 'end'),)
def chosen(rows):
  return [row for row in rows if row['rate'] == 2]
def summary(rows):
  return f'{len(rows)} rows & more'
"""
SQUARE = (
  '<?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "a" "http://b/c.dtd">\n'
  '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 200 200" width="200" '
  'height="200"><metadata><a href="http://d"/></metadata>'
  '<path id="p" d="M0 0H200V200Z" fill="#888"/></svg>'
)


def row(run, rng):
  """The results of a run: the upcycled model is better and costs twice."""
  upcycled = run['arm'] == 'upcycled'
  steps = np.linspace(0, 100, 6)
  value = 3 - steps / 100 - 1.3 * upcycled * steps / 100 + 0.01 * rng.rand(6)
  if run['modality'] == 'vision':
    value = 1 - value / 10
  spent = np.stack([steps, 1e9 * steps, steps], 1) * (
    [1, 2, 2] if upcycled else 1
  )
  curve = np.column_stack([spent, value]).tolist()
  return {
    **sweep.entries({'scale': 'laptop', **run}),
    'step': 1100,
    'seconds': 3600.0,
    'FLOPs': curve[-1][1],
    'images': 1300,
    'cost/cpu': 'a cpu',
    'cost/jax': '1',
    'cost/peak_memory': 5_000_000,
    run['metric']: curve[-1][3],
    'curves': {run['metric']: curve},
  }


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A repository of the three experiments."""
  root, rng = tmp_path_factory.mktemp('report'), np.random.RandomState(0)
  sources = {'01_chosen': CHOSEN, '03_core': CORE, '08_waiting': WAITING}
  for name, source in sources.items():
    (root / 'experiments' / name).mkdir(parents=True)
    (root / 'experiments' / name / 'sweep.py').write_text(source)
  (root / 'experiments/00_none').mkdir()
  core, finetuning = (
    root / 'experiments' / n for n in ('03_core', '01_chosen')
  )
  runs = runpy.run_path(str(core / 'sweep.py'))['SCALES']['laptop']
  rows = [row(run, rng) for run in runs]
  # An older result of the same name; one of other settings; what is not there.
  rows.insert(0, {**rows[0], 'eval/loss': 99.0, 'curves': {}})
  del rows[-2:]
  rows[-1] = {k: v for k, v in rows[-1].items() if '/' not in k} | {
    'error': 'step 7 is not finite: stopped. The newest checkpoint'
  }
  rows.append({**rows[2], 'eval/loss': 0.0, 'model_dir': 'runs/sweeps/other'})
  for one in rows:
    results.append(core / 'results.jsonl', one)
  runs = runpy.run_path(str(finetuning / 'sweep.py'))['SCALES']['laptop']
  for run in runs:
    value = (run['arm'] == 'dense') * 0.1 + run['seed'] / 100 + run['rate']
    made = {**sweep.entries({'scale': 'laptop', **run}), 'test/accuracy': value}
    results.append(finetuning / 'results.jsonl', made)
  pictures = core / 'figures'
  pictures.mkdir()
  (pictures / 'load.svg').write_text(SQUARE)
  (pictures / 'drift.svg').write_text(SQUARE)
  captions = {'load.svg': 'Load of <all> experts.', 'drift.svg': 'Drift.'}
  (pictures / 'captions.json').write_text(json.dumps(captions))
  text = 'before\n<!-- results -->\nformer\n<!-- /results -->\nafter\n'
  (root / 'README.md').write_text(text)
  return root


@pytest.fixture(scope='module')
def found(root):
  return report.experiments(sorted((root / 'experiments').iterdir()), 'laptop')


@pytest.fixture(scope='module')
def docs(root, found):
  about, readme = arms.ABOUT['laptop'], root / 'README.md'
  report_pages.write(found, root / 'docs', about=about, readme=readme)
  return root / 'docs'


def test_verdicts_are_those_of_the_checks(root, found):
  """They, and the numbers, are computed again from the file."""
  finetuning, core, waiting = found
  assert [one['name'][:2] for one in found] == ['01', '03', '08']
  rows = results.read(root / 'experiments/03_core/results.jsonl')[1:-1]
  checks = runpy.run_path(str(root / 'experiments/03_core/sweep.py'))['CHECKS']
  for modality, findings in verdicts.by_modality(checks, rows).items():
    part = core['parts'][modality]
    assert part['verdict'] == verdicts.overall(findings)
    for finding, line in zip(findings, part['checks'], strict=True):
      words = f'{line["check"]}: {line["by how much"]}, {line["verdict"]}'
      beside = '' if finding.check.decides else ' (no part of the claim)'
      assert words == verdicts.words(finding) + beside
  assert core['parts']['language']['verdict'] == verdicts.HOLDS
  assert core['parts']['vision']['verdict'] == verdicts.UNDECIDED
  assert '2 seeds' in core['parts']['vision']['why']
  assert [p['verdict'] for p in waiting['parts'].values()] == ['not run'] * 2
  (part,) = finetuning['parts'].values()
  assert part['verdict'] == verdicts.FAILS
  assert part['why'].endswith('-0.1000 (-0.1000 to -0.1000, 3 seeds)')


def test_a_table_of_arms(root, found):
  rows = results.read(root / 'experiments/03_core/results.jsonl')[1:7]
  dense, upcycled = found[1]['parts']['language']['arms']
  assert (dense['arm'], dense['seeds'], dense['FLOPs']) == ('dense', 3, 1e11)
  assert upcycled['seconds'] == 3600 and upcycled['peak memory (MB)'] == 5
  curves = [
    np.array(r['curves']['eval/loss']) for r in rows if r['arm'] == 'upcycled'
  ]
  ends = [verdicts.reached(curve, 0, 100) for curve in curves]
  low, high = results.interval(ends)
  expected = {'mean': np.mean(ends), 'low': low, 'high': high}
  assert upcycled['at equal steps (100)'] == pytest.approx(expected)
  # The upcycled model has made half of its steps by then.
  halves = [verdicts.reached(curve, 0, 50) for curve in curves]
  for title in ('at equal FLOPs (1.000e+11)', 'at equal seconds (100)'):
    assert upcycled[title]['mean'] == pytest.approx(np.mean(halves))
  assert dense['at the start']['mean'] == pytest.approx(3, abs=0.01)
  (alone,) = report_values.table(rows[:1])
  assert alone['at equal steps (100)'] > rows[0]['eval/loss']
  # Of both ends alone one knows the end.
  ends = {'eval/loss': [[0, 0, 0, 3], [300, 9, 9, 2]]}
  one = {**rows[0], 'curves': ends, 'eval/loss': 2}
  assert report_values.reached([one]) == {'at the end': {'dense': [2]}}
  one = {**rows[0], 'curves': {'eval/loss': [[0, 0, 0, 3], [1, 9, 9, 2]]}}
  assert report_values.reached([one]) == {'at the start': {'dense': [3]}}


def test_what_seeds_have_in_common_hides_nothing(root):
  """Where a seed is better in all its arms, intervals do not show it."""
  rows = results.read(root / 'experiments/03_core/results.jsonl')[1:7]
  far = json.loads(json.dumps(rows))
  for row in far:
    for point in row['curves']['eval/loss']:
      point[3] += 10 * row['seed']
  was, found = (
    report_values.reached(far),
    report_values.reached(report_values.levelled(far)),
  )
  (steps,) = (title for title in was if 'steps' in title)
  between = np.subtract(*was[steps].values())
  for title, by in found.items():
    for arm, values in by.items():
      assert np.ptp(values) < 0.1 < 10 < np.ptp(was[title][arm])
      if 'steps' in title:  # half the difference of two, made larger
        assert np.ptp(values) == pytest.approx(np.ptp(between) / 2**0.5)
      assert np.mean(values) == pytest.approx(np.mean(was[title][arm]))
  assert report_values.levelled(far[:-1]) == far[:-1]
  assert 'a common level' in report_figures.figure(far)['caption']
  assert 'a common level' not in report_figures.figure(far[:-1])['caption']


def test_numbers_of_findings():
  check = verdicts.Check('a', 'b', 'FLOPs', relation='cheaper')
  logs = np.log([2, 1, 4])
  found = verdicts.Finding(check, *logs, 3, verdicts.HOLDS)
  words = 'b needs 2.00 times as much (1.00 to 4.00, 3 seeds)'
  assert verdicts.numbers(found) == words
  one = found._replace(check=verdicts.Check('a', 'b'), seeds=1)
  assert verdicts.numbers(one) == '+0.6931 (1 seed)'
  none = verdicts.find(check, [])
  assert verdicts.numbers(none) == 'no seed has both'


def test_without_a_check_that_decides_there_is_no_claim(root):
  rows = results.read(root / 'experiments/03_core/results.jsonl')[1:7]
  checks = (verdicts.Check('upcycled', 'dense', decides=False),)
  part = report_parts.part(rows, rows, rows, {'CHECKS': checks})
  assert part['verdict'] == 'no claim' and part['why'].startswith('upcycled is')
  assert part['checks'][0]['verdict'] == 'holds (no part of the claim)'


def test_figures_suit_their_arms(root):
  rows = results.read(root / 'experiments/03_core/results.jsonl')[1:7]
  many = [{**r, 'arm': f'{r["arm"]} {i}'} for i in range(4) for r in rows]
  bare = [{k: v for k, v in r.items() if k != 'curves'} for r in rows]
  shares = [r | {'before/FLOPs': 4e11} for r in rows]
  unknown = json.loads(json.dumps(rows))
  for one in unknown:
    for point in one['curves']['eval/loss']:
      point[1] = None
  for those, kind, words, panels in (
    (rows, '', 'against what is spent', ['steps', 'GFLOPs', 'minutes']),
    (shares, '', 'against what is spent', ["FLOPs, % of the dense model's"]),
    (unknown, '', 'against what is spent', ['steps', 'minutes']),
    (many, '', 'small dots are seeds', ['at equal FLOPs', 'at equal seconds']),
    (many, 'curves', 'against what is spent', ['GFLOPs']),
    (rows, 'start', 'Right after surgery', ['at the start']),
    (bare, 'start', 'small dots are seeds', ['at the end']),
  ):
    figure = report_figures.figure(those, kind)
    assert words in figure['caption']
    assert all(panel in figure['svg'] for panel in panels)
    assert figure['svg'].count('validation loss')
    for arm in {row['arm'] for row in those}:
      assert f'>{arm}</text>' in figure['svg']
  assert 'FLOPs' not in report_figures.figure(unknown)['svg']
  assert report_figures.figure([]) == {'svg': '', 'caption': ''}


def test_chosen_rows_are_a_table_without_curves(found):
  (part,) = found[0]['parts'].values()
  dense, upcycled = part['arms']
  assert dense.keys() == {'arm', 'seeds', 'at the end'}
  assert upcycled['at the end']['mean'] == pytest.approx(2.01)
  assert found[0]['text'] == '12 rows & more'


def test_what_is_missing_is_said(found):
  parts = found[1]['parts']
  assert not parts['language']['missing']
  assert parts['vision']['missing'] == [
    'Not run yet: dense, seed 2.',
    'Not run yet: upcycled, seed 2.',
    'vision_upcycled_1 diverged: step 7 is not finite: stopped.',
  ]
  assert not found[2]['parts']['vision']['missing']
  assert parts['language']['setup'] == {
    'seeds': '0, 1, 2',
    'extra steps': '100',
    'images of a run': '1,300',
    'runs': '6, in 6 hours of compute',
    'machine': 'cpu a cpu',
    'versions': 'jax 1',
  }


def test_a_sweep_that_says_too_little(tmp_path):
  for name, lacks in (('a', 'PAPER'), ('b', 'CHECKS')):
    (tmp_path / name).mkdir()
    source = WAITING.replace(lacks, 'OTHER').replace('(OTHER)', '(())')
    (tmp_path / name / 'sweep.py').write_text(source)
  with pytest.raises(ValueError, match='a lacks PAPER; b lacks CHECKS'):
    report.experiments(sorted(tmp_path.iterdir()), 'laptop')


def test_another_scale_has_not_been_run(root):
  _, core, _ = report.experiments(
    [root / 'experiments' / n for n in ('01_chosen', '03_core', '08_waiting')],
    'base',
  )
  assert core['parts'] == {} and core['scale'] == 'base'


@pytest.mark.parametrize('scale', ['laptop', 'base'])
def test_every_experiment_can_be_reported(scale, tmp_path):
  """As not run, for their figures take a while."""
  sources = sorted(tiny_scripts.ROOT.glob('experiments/*/sweep.py'))
  for file in sources:
    (tmp_path / file.parent.name).mkdir()
    shutil.copy(file, tmp_path / file.parent.name)
  found = report.experiments(sorted(tmp_path.iterdir()), scale)
  assert len(found) == len(sources) >= 19
  claims = {claim for one in found for claim in one['claims'].split(', ')}
  assert claims >= {f'C{i}' for i in range(1, 16)}
  parts = [part for one in found for part in one['parts'].values()]
  assert {part['verdict'] for part in parts} == {'not run'}
  assert report_pages.html(found) and report_pages.markdown(found)


@pytest.mark.parametrize('rows', [slice(0, 1), slice(1, 3), slice(1, 8)])
def test_any_part_of_the_results_is_a_report(root, tmp_path, rows):
  folder = tmp_path / '03_core'
  shutil.copytree(root / 'experiments/03_core', folder)
  file = folder / 'results.jsonl'
  file.write_text(''.join(file.read_text().splitlines(keepends=True)[rows]))
  found = report.experiments([folder], 'laptop')
  assert 'undecided' in report_pages.html(found)
  assert 'Not run yet' in report_pages.markdown(found)


def test_the_same_results_give_the_same_bytes(root, docs):
  def files():
    pages = [*docs.rglob('*.*'), root / 'README.md']
    return {page: page.read_bytes() for page in sorted(pages)}

  before = files()
  assert [f.name for f in before if f.suffix == '.svg'] == [
    '01_chosen_vision.svg',
    '03_core_language.svg',
    '03_core_vision.svg',
  ]
  for file in before:
    if file.parent != root:
      file.unlink()
  script = [sys.executable, tiny_scripts.ROOT / 'scripts/report.py']
  subprocess.run([*script, f'--root={root}'], check=True)
  assert files() == before


def test_pages_of_another_scale_are_beside(root, docs):
  readme, page = root / 'README.md', docs / 'results.md'
  before = readme.read_bytes(), page.read_bytes()
  script = [sys.executable, tiny_scripts.ROOT / 'scripts/report.py']
  subprocess.run([*script, f'--root={root}', '--scale=base'], check=True)
  assert (readme.read_bytes(), page.read_bytes()) == before
  for suffix in ('html', 'md'):
    (docs / f'results_base.{suffix}').unlink()


def test_figures_that_are_of_nothing_are_removed(root, found, tmp_path):
  report_pages.write(found, tmp_path)
  names = {f.name for f in (tmp_path / 'figures/results').iterdir()}
  report_pages.write(found[:1], tmp_path)
  left = {f.name for f in (tmp_path / 'figures/results').iterdir()}
  assert left == {'01_chosen_vision.svg'} < names


def test_the_readme_has_the_table_of_claims(root, docs):
  text = (root / 'README.md').read_text()
  assert text.startswith('before\n<!-- results -->\n\n| claim | question |')
  assert text.endswith('|\n\n<!-- /results -->\nafter\n')
  assert 'former' not in text
  (line,) = (x for x in text.splitlines() if x.startswith('| C1, C2 |'))
  cells = line.split(' | ')
  assert cells[1] == '[Core](docs/results.md#03_core): Better?'
  assert cells[2] == 'P & Q: < 1.'
  assert cells[3].startswith('**holds**: upcycled is better than dense for eq')
  assert '| Still? |' not in text and '|  | **does not hold at this' in text


def test_markdown_links_to_what_is_there(docs):
  text = (docs / 'results.md').read_text()
  links = re.findall(r'\]\(([^)\s]+)\)', text)
  assert len(links) == 3 + 3 + 2
  for link in links:
    if link[0] == '#':
      assert f'<a id="{link[1:]}"></a>' in text
    else:
      assert (docs / link).exists(), link
  assert '    12 rows & more' in text and '\nNote: Few & small.\n' in text
  assert '\n\n\n' not in text


class Page(HTMLParser):
  """Ids, links into the page, whatever names a resource, and text."""

  def __init__(self, text):
    super().__init__()
    self.ids, self.links, self.others, self.data = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    for name, value in attributes:
      if name == 'id':
        self.ids.append(value)
      elif name in ('href', 'xlink:href') and value[0] == '#':
        self.links.append(value[1:])
      elif name in ('href', 'xlink:href', 'src', 'srcset', 'data', 'action'):
        self.others.append(value)
      elif name not in ('xmlns', 'xmlns:xlink'):
        self.links += re.findall(r'url\(#([^)]*)\)', value or '')
        self.others += re.findall(r'url\([^#)]*\)|\w+://.*', value or '')

  def handle_data(self, data):
    self.data.append(data)
    self.others += re.findall(r'url\([^#]|@import|\w+://', data)


def test_the_page_stands_alone(docs):
  page = Page((docs / 'results.html').read_text())
  assert not page.others
  assert len(page.ids) == len(set(page.ids))
  assert set(page.links) <= set(page.ids)
  assert {'claims', '01_chosen', '03_core', '03_core-vision'} <= set(page.links)
  text = ' '.join(' '.join(page.data).split())
  for words in (
    'P & Q: < 1.',
    'Few & small.',
    'Load of <all> experts.',
    'vision_upcycled_1 diverged: step 7',
    'does not hold at this scale',
    'not run',
    '12 rows & more',
    'python scripts/sweep.py experiments/03_core --scale=laptop',
  ):
    assert words in text, words


# In a copy of the page, which says how it looks to the page around it.
SPY = """<script>
const errors = [];
const note = e => errors.push(e.message || e.target.outerHTML);
addEventListener('error', note, true);
addEventListener('load', () => {
  const colour = (e, name) => getComputedStyle(e)[name];
  const box = e => e.getBoundingClientRect();
  parent.postMessage({
    errors,
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
    width: innerWidth,
    beyond: document.documentElement.scrollWidth - innerWidth,
    svgs: [...document.querySelectorAll('svg')].map(e => {
      const {width, height} = box(e);
      return [width, height];
    }),
    ground: colour(document.body, 'backgroundColor'),
    inks: [...document.querySelectorAll('svg text')]
      .map(e => colour(e, 'fill')),
  }, '*');
});
</script>"""
FRAMES = """<!DOCTYPE html><pre id="said"></pre><script>
addEventListener('message', e => said.append(JSON.stringify(e.data) + '\\n'));
</script>"""


@pytest.fixture(scope='module')
def seen(docs, tmp_path_factory):
  """What a browser says of the page, by (dark, width)."""
  browser = shutil.which('chromium') or shutil.which('google-chrome')
  assert browser, (
    'No browser is installed, and the report is looked at in one: '
    'apt-get install chromium.'
  )
  folder = tmp_path_factory.mktemp('browser')
  text = (docs / 'results.html').read_text()
  (folder / 'page.html').write_text(text.replace('<head>', '<head>' + SPY))
  frames = [
    f'<iframe src="page.html" width="{width}" height="844" '
    f'style="border:0;color-scheme:{scheme}"></iframe>'
    for width in (390, 1200)
    for scheme in ('light', 'dark')
  ]
  (folder / 'frames.html').write_text(FRAMES + ''.join(frames))
  switches = (
    'headless no-sandbox disable-gpu disable-quic no-first-run '
    'disable-background-networking disable-component-update disable-sync '
    f'user-data-dir={folder / "profile"} virtual-time-budget=5000 dump-dom'
  )
  done = subprocess.run(
    [browser, *(f'--{x}' for x in switches.split()), folder / 'frames.html'],
    capture_output=True,
    text=True,
    check=True,
    timeout=120,
  )
  (said,) = re.findall(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
  views = [json.loads(line) for line in said.splitlines()]
  return {(view['dark'], view['width']): view for view in views}


@pytest.mark.parametrize('width', [390, 1200])
@pytest.mark.parametrize('dark', [False, True])
def test_a_browser_shows_the_page(seen, dark, width):
  view = seen[dark, width]
  assert not view['errors']
  assert view['beyond'] <= 0
  # Three figures and two pictures.
  assert len(view['svgs']) == 5
  assert all(w > 100 and h > 100 for w, h in view['svgs'])
  assert len(view['inks']) > 30
  assert all(contrast(ink, view['ground']) > 4.5 for ink in view['inks'])


def contrast(first: str, second: str) -> float:
  """Of two colours as CSS has them, 'rgb(1, 2, 3)': WCAG 2's ratio."""

  def luminance(colour):
    rgb = np.array(re.findall(r'\d+', colour)[:3], float) / 255
    linear = np.where(rgb <= 0.04, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]

  dark, light = sorted(map(luminance, (first, second)))
  return (light + 0.05) / (dark + 0.05)
