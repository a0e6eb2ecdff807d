# SPDX-License-Identifier: Apache-2.0
"""What keeps the code base simple, read off the source without importing it."""

import ast
from collections.abc import Iterator
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Folders of the root that git ignores.
NOT_OURS = {'data', 'runs', 'build', 'dist'}

# One direction of imports: what each part of upcycle/ may import of ours.
# A part is a module or a subpackage; within a subpackage all is allowed.
IMPORTS = {
  'trees': set(),
  'routing': {'partition'},
  'dispatch': set(),
  'expert_init': set(),
  'depth': {'trees'},
  'losses': set(),
  'flops': set(),
  'cost': {'flops', 'losses', 'partition', 'results', 'trees'},
  'optim': set(),
  'results': set(),
  'data': set(),
  'ridge': set(),
  'positions': set(),
  'quantize': {'trees'},
  'checkpoints': {'trees'},
  'surgery': {'depth', 'expert_init', 'trees'},
  'downcycle': {'expert_init', 'surgery', 'trees'},
  'partition': set(),
  'preemption': set(),
  'experts': {'dispatch'},
  'exchange': {'dispatch', 'experts', 'partition'},
  'ragged': {'experts'},
  'models': {'routing', 'experts', 'exchange', 'partition', 'ragged'},
  'evaluate': {'losses', 'partition'},
  'fewshot': {'partition', 'ridge'},
  'decode': {'partition'},
  'infer': {'data', 'decode'},
  'evaluate_tasks': {'data', 'decode', 'infer'},
  'distill': {'losses'},
  'receipt': {'checkpoints', 'evaluate', 'losses', 'surgery', 'trees'},
  'convert': {
    'checkpoints',
    'compatibility',
    'depth',
    'expert_init',
    'initialize',
    'receipt',
    'results',
    'surgery',
    'transfer',
  },
  'compatibility': {'checkpoints'},
  'transfer': {'checkpoints', 'depth', 'positions', 'surgery', 'trees'},
  'initialize': {
    'checkpoints',
    'compatibility',
    'depth',
    'evaluate',
    'expert_init',
    'losses',
    'optim',
    'partition',
    'receipt',
    'surgery',
    'transfer',
    'trees',
  },
  'evaluate_checkpoint': {
    'checkpoints',
    'compatibility',
    'evaluate',
    'initialize',
    'partition',
    'quantize',
    'trees',
  },
  'inspect_routing': {'models', 'surgery', 'trees'},
  'export': {
    'checkpoints',
    'compatibility',
    'downcycle',
    'evaluate_checkpoint',
    'initialize',
    'partition',
    'receipt',
    'results',
    'surgery',
    'trees',
  },
  'train_step': {'initialize', 'losses', 'partition'},
  'plan': {'data', 'flops', 'initialize', 'losses', 'partition', 'train_step'},
  # All but models: gin hands `model` and `init_from` to it.
  'train': {
    'checkpoints',
    'compatibility',
    'cost',
    'data',
    'distill',
    'evaluate',
    'initialize',
    'losses',
    'optim',
    'partition',
    'preemption',
    'results',
    'surgery',
    'train_step',
    'trees',
  },
}
TENSORFLOW = {
  'seqio',
  't5',
  'tensorflow',
  'tensorflow_datasets',
  'tensorflow_text',
}
PICKLES = {'cloudpickle', 'dill', 'joblib', 'pickle', 'shelve', 'torch'}


def files(*patterns: str, under: str = '.') -> list[pathlib.Path]:
  found = (p for pattern in patterns for p in (ROOT / under).rglob(pattern))
  return sorted(
    p
    for p in found
    if p.is_file()
    and not NOT_OURS & set(p.relative_to(ROOT).parts[:1])
    and not any(
      part.startswith('.') and part != '.ci'
      for part in p.relative_to(ROOT).parts[:-1]
    )
    and '.egg-info' not in str(p)
  )


def name(path: pathlib.Path) -> str:
  return str(path.relative_to(ROOT))


def tree(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(), name(path))


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
  """Absolute dotted names: `from a import b` gives 'a.b'."""
  for node in nodes:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'line {node.lineno}: import by absolute names'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def roots(path: pathlib.Path, *, top_level: bool = False) -> set[str]:
  """The packages a file imports anywhere, or when it is itself imported."""
  nodes = tree(path).body if top_level else ast.walk(tree(path))
  return {module.split('.')[0] for module in imported(nodes)}


def part(path: pathlib.Path) -> str:
  """'trees' for upcycle/trees.py, 'data' for upcycle/data/text.py."""
  return path.relative_to(ROOT / 'upcycle').parts[0].removesuffix('.py')


SOURCES = files('*.py', under='upcycle')
SCRIPTS = files('*.py', under='scripts')
EXPERIMENTS = files('*.py', under='experiments')
TESTS = files('*.py', under='tests')
GIN = files('*.gin')


def test_imports_have_one_direction():
  wrong = []
  for path in SOURCES:
    own = part(path)
    allowed = IMPORTS.get(own, set()) | {own}
    for module in imported(ast.walk(tree(path))):
      if module == 'upcycle' or not module.startswith('upcycle.'):
        continue
      target = module.split('.')[1]
      if target not in allowed:
        wrong.append(f'{name(path)} imports {module}')
  assert not wrong, '\n'.join(wrong)


def test_import_table_is_acyclic_and_current():
  parts = {part(path) for path in SOURCES} - {'__init__'}
  assert parts <= IMPORTS.keys(), parts - IMPORTS.keys()
  done: set[str] = set()
  while parts - done:
    free = {p for p in parts - done if not (IMPORTS[p] & parts) - done}
    assert free, f'a circle of imports among {sorted(parts - done)}'
    done |= free


def test_every_folder_is_a_package():
  for folder in {path.parent for path in SOURCES}:
    assert (folder / '__init__.py').exists(), f'{name(folder)}: __init__.py'


def test_experiments_import_results_alone():
  """But for those that time the project, or look into its models."""
  wrong = [
    f'{name(path)} imports {module}'
    for path in EXPERIMENTS
    if path.parent.name not in {'performance', '21_routing'}
    for module in imported(ast.walk(tree(path)))
    if re.match(r'upcycle\b', module)
    and not re.match(r'upcycle\.results\b', module)
  ]
  assert not wrong, '\n'.join(wrong)


def test_the_package_knows_nothing_above_it():
  above = {'gin', 'scripts', 'experiments', 'tests', 'conftest'}
  wrong = [
    f'{name(p)}: {above & roots(p)}' for p in SOURCES if above & roots(p)
  ]
  assert not wrong, '\n'.join(wrong)


def test_linen_lives_in_models_and_partition():
  wrong = [
    name(path)
    for path in SOURCES
    if part(path) not in {'models', 'partition'}
    for module in imported(ast.walk(tree(path)))
    if module.startswith('flax.linen')
  ]
  assert not wrong, wrong


def test_tensorflow_lives_in_data_and_evaluate():
  for path in SOURCES + SCRIPTS:
    if part_or_none(path) not in {'data', 'evaluate'}:
      assert not TENSORFLOW & roots(path), name(path)


def test_tensorflow_is_imported_when_a_config_asks_for_it():
  for path in SOURCES:
    if not name(path).startswith('upcycle/data/seqio_'):
      assert not TENSORFLOW & roots(path, top_level=True), name(path)


def part_or_none(path: pathlib.Path) -> str | None:
  return part(path) if path.is_relative_to(ROOT / 'upcycle') else None


# Packages that importing a module does not bring along, for what does without
# them to start at once. Each is imported after those above it.
LIGHT = {
  'upcycle': {'grain', 'jax', 'matplotlib', 'orbax', *TENSORFLOW},
  'upcycle.results': {'grain', 'jax', 'matplotlib', 'rich', 'tensorboardX'},
  'upcycle.checkpoints': {'flax', 'grain', 'matplotlib', 'optax', 'orbax'},
  'upcycle.convert': {'flax', 'grain', 'matplotlib', 'orbax', 'rich'},
  'upcycle.evaluate_checkpoint': {'flax', 'grain', 'orbax', 'rich'},
  'upcycle.train': {'PIL', 'grain', 'matplotlib', 'rich', 'tensorboardX'},
}


def modules_after(*statements: str) -> list[set[str]]:
  """What a process has imported after each statement."""
  code = 'import sys\n' + ''.join(
    f'{s}; print(*sys.modules)\n' for s in statements
  )
  out = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert out.returncode == 0, out.stderr
  lines = out.stdout.splitlines()
  return [{m.split('.')[0] for m in line.split()} for line in lines]


def test_imports_are_light():
  found = modules_after(*(f'import {module}' for module in LIGHT))
  for (module, heavy), modules in zip(LIGHT.items(), found, strict=True):
    assert not heavy & modules, f'{module} imports {heavy & modules}'


def test_the_core_runs_without_tensorflow():
  core = [
    '.'.join(path.with_suffix('').relative_to(ROOT).parts)
    for path in SOURCES
    if path.stem != '__init__' and not path.stem.startswith('seqio_')
  ]
  (modules,) = modules_after(f'import {", ".join(core)}')
  found = TENSORFLOW & modules
  assert not found, f'{found} imported by one of {core}'


def test_no_pickle_is_opened():
  for path in SOURCES + SCRIPTS + EXPERIMENTS + TESTS:
    # Scripts of other environments.
    if path.parent.name != 'golden' and path.name != 'peers.py':
      assert not PICKLES & roots(path), name(path)
    for node in ast.walk(tree(path)):
      if isinstance(node, ast.keyword) and node.arg == 'allow_pickle':
        ok = isinstance(node.value, ast.Constant) and node.value.value is False
        assert ok, f'{name(path)}:{node.value.lineno}: allow_pickle'


def test_no_test_is_skipped():
  for path in TESTS:
    for node in ast.walk(tree(path)):
      called = getattr(node, 'attr', getattr(node, 'id', None))
      assert called not in {'skip', 'skipif', 'xfail', 'importorskip'}, (
        f'{name(path)}:{node.lineno} uses pytest.{called}: a test runs or goes'
      )


def longer(lengths: dict[str, int], most: int) -> list[str]:
  """Those longer than `most`, the longest last."""
  found = sorted((n, where) for where, n in lengths.items() if n > most)
  return [f'{where} has {n} lines' for n, where in found]


def test_files_are_short():
  lengths = {name(p): len(p.read_text().splitlines()) for p in SOURCES}
  too_long = longer(lengths, 300)
  assert not too_long
  above_median = longer(lengths, 130)
  assert len(above_median) <= len(lengths) / 2


def test_functions_are_short():
  """Docstrings count, and a nested function counts again by itself."""
  lengths, most = {}, {}
  for path in SOURCES:
    for node in ast.walk(tree(path)):
      if isinstance(node, ast.FunctionDef):
        where = f'{name(path)}:{node.lineno} {node.name}'
        lengths[where] = node.end_lineno - node.lineno + 1
        is_train = name(path) == 'upcycle/train.py' and node.name == 'train'
        most[where] = 150 if is_train else 100
  too_long = [w for w, n in lengths.items() if n > most[w]]
  assert not too_long
  above_p90 = longer(lengths, 40)
  assert len(above_p90) <= len(lengths) / 10
  above_median = longer(lengths, 15)
  assert len(above_median) <= len(lengths) / 2


def text_files() -> list[pathlib.Path]:
  suffixes = ['py', 'gin', 'sh', 'md', 'toml', 'yaml', 'yml', 'cfg', 'ipynb']
  return files(
    *(f'*.{s}' for s in suffixes), 'Makefile', '.gitignore', '*.lock', 'run'
  )


def test_every_file_states_its_licence():
  kinds = {'.py', '.gin', '.sh', '.toml', '.yaml', '.lock', ''}
  for path in text_files():
    if path.suffix in kinds and path.name != 'LICENSE':
      lines = path.read_text().splitlines() or ['']
      first = lines[lines[0].startswith('#!')]
      assert first == '# SPDX-License-Identifier: Apache-2.0', name(path)


def test_files_know_no_machine():
  """No absolute path of somebody's disk, no package registry's address."""
  tops = 'home|mnt|opt|root|tmp|usr|work|Users'
  path = re.compile(rf'(?<![\w.~$}})>*/-])/(?:{tops})/\w')
  registry = re.compile(r'\b(?:pypi|npmjs|pythonhosted)\.(?:org|com|io)\b')
  for file in text_files():
    for number, line in enumerate(file.read_text().splitlines(), 1):
      if line.startswith('#!'):
        continue
      for pattern in (path, registry):
        found = pattern.search(line)
        assert not found, f'{name(file)}:{number}: {found and found[0]}'


@pytest.mark.parametrize('path', GIN, ids=name)
def test_gin_file(path):
  lines = path.read_text().splitlines()
  assert len(lines) <= 60
  includes = re.findall(r"^include '(.*)'", path.read_text(), re.MULTILINE)
  for include in includes:
    text = (ROOT / include).read_text()
    assert not re.search('^include', text, re.MULTILINE), (
      f'{name(path)} includes {include}, which includes another: one level'
    )
  if path.parent.name == 'base':
    assert not includes, 'what is included includes nothing'
    return
  header = '\n'.join(x for x in lines if x.startswith('#'))
  for word in ('Command:', 'Hardware:', 'Time:', 'Expected:'):
    assert word in header, f'{name(path)}: no "# {word}" in the header'


@pytest.mark.parametrize('path', files('*.md'), ids=name)
def test_links_resolve(path):
  text = re.sub(r'```.*?```', '', path.read_text(), flags=re.DOTALL)
  targets = re.findall(r'\]\(([^)\s]+)\)', text)
  targets += re.findall(r'(?:src|href)="([^"]+)"', text)
  for target in targets:
    if not re.match(r'[a-z]+:|#', target):
      file = path.parent / target.split('#')[0]
      assert file.exists(), f'{name(path)} links to {target}'


def test_readme_names_what_exists():
  text = (ROOT / 'README.md').read_text()
  kinds = 'configs|docs|experiments|notebooks|scripts|tests|upcycle'
  for target in set(re.findall(rf'\b(?:{kinds})/[\w./-]*\w', text)):
    assert (ROOT / target).exists(), f'README.md names {target}'
  made = (ROOT / 'Makefile').read_text()
  for target in set(re.findall(r'\bmake ([a-z]+)`', text)):
    assert re.search(rf'^{target}:', made, re.MULTILINE), f'make {target}'


def locked(file: str) -> set[str]:
  lines = (ROOT / file).read_text().splitlines()
  return {x.rstrip(' \\') for x in lines if '==' in x}


def test_demo_lock_is_part_of_the_full_lock():
  demo, full = locked('requirements-demo.lock'), locked('requirements.lock')
  assert demo < full, demo - full
  assert not [x for x in demo if x.split('==')[0] in TENSORFLOW | {'pytest'}]
