# SPDX-License-Identifier: Apache-2.0
"""What a step takes on hardware that is not there."""

import importlib
import json
import math
import os
from pathlib import Path
import subprocess
import sys
import types

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_runs, tiny_scripts, tiny_text, tiny_vit_runs
from upcycle import (
  flops,
  initialize,
  losses,
  optim,
  routing,
  train,
  train_step,
)
from upcycle.models import moe, t5
from upcycle.plan import (
  advice,
  batches,
  chips,
  estimate,
  hlo,
  program,
  topologies,
)

ROOT = Path(__file__).parent.parent

# Instructions as compilers print them: tuples, the asynchronous forms, layouts
# with tiles, both ways to list groups, a loop of three turns.
TEXT = """\
HloModule jit_step, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %b)
}

%async_computation (p: bf16[8,16]) -> bf16[8,16] {
  %p = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-to-all.9 = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} all-to-all(%p), \
channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%body (q: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %q = (s32[], f32[8,4]{1,0}) parameter(0)
  %all-to-all.1 = (f32[1,4]{1,0}, f32[1,4]{1,0}) all-to-all(%y, %z), \
channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %while.2 = (s32[], f32[8,4]{1,0}) while(%w), condition=%inner.1, body=%inner
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %x)
}

%condition (q: (s32[], f32[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%inner (q: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %q = (s32[], f32[8,4]{1,0}) parameter(0)
  %all-gather.2 = f32[8]{0} all-gather(%y), channel_id=8, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={0}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %x)
}

%inner.1 (q: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %while.1 = (s32[], f32[8,4]{1,0}) while(%init), condition=%condition, \
body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %async = ((bf16[8,16]{1,0}), bf16[8,16]{1,0}, u32[]) async-start(%c), \
calls=%async_computation
  %done = bf16[8,16]{1,0} async-done(%async)
  %all-reduce-start.1 = (f32[10]{0}, bf16[6]{0}) all-reduce-start(%a, %b), \
channel_id=2, replica_groups=[1,8]<=[8], to_apply=%add
  %all-reduce-done.1 = (f32[10]{0}, bf16[6]{0}) all-reduce-done(%all-reduce-sta)
  %all-gather-start.1 = ((f32[2,4]{1,0}, pred[3]{0}), \
(f32[8,4]{1,0}, pred[12]{0}), u32[], u32[]) all-gather-start(%x, %m), \
channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %reduce-scatter.1 = s8[5]{0} reduce-scatter(%s), channel_id=4, \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add
  %collective-permute-start.1 = (f32[7]{0}, f32[7]{0}, u32[], u32[]) \
collective-permute-start(%w), channel_id=5, source_target_pairs={{0,1},{1,0}}
  %f.1 = f32[4]{0:T(128)} fusion(%all-reduce-done.1), kind=kLoop, calls=%add
  %send.1 = (f32[6]{0:T(128)}, bf16[2]{0}, u32[], token[]) send(%s, %after-all)
  %send-done.1 = token[] send-done(%send.1), channel_id=9
  ROOT %all-reduce.2 = f8e4m3fn[16]{0} all-reduce(%e), to_apply=%add
}
"""


def test_collectives_of_a_compiled_text():
  found = hlo.collectives(TEXT, 8)
  assert {(c.kind, c.bytes, c.group, c.times) for c in found} == {
    ('all-to-all', 8 * 16 * 2, (0, 1, 2, 3), 1),
    ('all-to-all', 2 * 4 * 4, (0, 1), 3),
    ('all-reduce', 10 * 4 + 6 * 2, tuple(range(8)), 1),
    ('all-reduce', 16, tuple(range(8)), 1),
    ('all-gather', 8 * 4 * 4 + 12, (0, 2, 4, 6), 1),
    ('all-gather', 8 * 4, (0, 4), 3 * 5),
    ('reduce-scatter', 5 * 4, (0, 1, 2, 3), 1),
    ('collective-permute', 7 * 4, (0, 1), 1),
    ('send', 6 * 4 + 2 * 2, tuple(range(8)), 1),
  }
  assert len(found) == 9
  kinds = estimate.by_kind(found)
  assert kinds['all-to-all'] == {
    'count': 4,
    'bytes': 256 + 3 * 32,
    'group': 4,
  }


@pytest.mark.parametrize(
  'text, said',
  [
    ('{{0,1},{2,3},{4,5},{6,7}}', [(0, 1), (2, 3), (4, 5), (6, 7)]),
    ('[4,2]<=[8]', [(0, 1), (2, 3), (4, 5), (6, 7)]),
    ('[4,2]<=[2,4]T(1,0)', [(0, 4), (1, 5), (2, 6), (3, 7)]),
    ("mesh['a'=2,'b'=4] {'a'}", [(0, 4), (1, 5), (2, 6), (3, 7)]),
    ("mesh['a'=2,'b'=4] {'b'}", [(0, 1, 2, 3), (4, 5, 6, 7)]),
    ("mesh['a'=2,'b'=4] {'a','b'}", [tuple(range(8))]),
    ("mesh['a'=2,'b'=4] {'b':(1)2}", [(0, 2), (1, 3), (4, 6), (5, 7)]),
    ("mesh['a'=2,'b'=4] {'b':(2)2}", [(0, 1), (2, 3), (4, 5), (6, 7)]),
    (
      "mesh['a'=2,'b'=4] {'a','b':(2)2}",
      [(0, 1, 4, 5), (2, 3, 6, 7)],
    ),
    ("mesh['a'=2,'b'=2], device_ids=(2,0,3,1) {'b'}", [(2, 0), (3, 1)]),
    (
      "mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}",
      [(0, 1, 2, 3), (4, 5, 6, 7)],
    ),
    ('{}', [tuple(range(8))]),
  ],
)
def test_groups_of_devices(text, said):
  line = f'channel_id=1, replica_groups={text}, use_global_device_ids=true'
  assert hlo.groups(line, 8) == said


def test_matrix_products_are_counted_with_their_loops():
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('a',))
  spec = jax.sharding.PartitionSpec()
  product = lambda x: x @ jnp.ones((3, 5))  # noqa: E731
  local = jax.shard_map(product, mesh=mesh, in_specs=spec, out_specs=spec)

  def whole(x):
    x = x + jax.lax.scan(lambda c, _: (c, product(c)), x, length=4)[1].sum()
    x = jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x.T @ x, x)
    return jax.jit(local)(x)

  once, branch = 2 * 2 * 3 * 5, 2 * 2 * 2 * 3 * 2
  jaxpr = jax.make_jaxpr(whole)(jnp.ones((2, 3))).jaxpr
  assert flops.matmuls(jaxpr) == 4 * once + branch + once


def test_microbatches_repeat_the_same_products():
  """A loop multiplies: a batch in parts takes what the whole one takes."""
  sparse = moe.MoeConfig(num_experts=4, group_size=16)
  config = t5.preset(
    't5_1_1_small', vocab_size=64, encoder_moe=sparse, **tiny_runs.SIZES
  )
  model, optimizer = t5.T5(config), optim.adafactor(0.1)
  shapes = batches.text(8, {'inputs': 16, 'targets': 8})

  def count(parts):
    step = train_step.make_train_step(
      model, losses.seq2seq, optimizer, microbatches=parts
    )
    state = jax.eval_shape(lambda: initialize.from_scratch(model, optimizer, 0))
    return flops.matmuls(jax.jit(step).trace(state, shapes).jaxpr)

  assert count(1) == count(2) > 1e6


def test_chips_are_what_their_makers_say():
  assert {'v4', 'v5e', 'v5p', 'v6e', 'h100'} == chips.CHIPS.keys()
  for name, chip in chips.CHIPS.items():
    assert chip.sources and all(x.startswith('https://') for x in chip.sources)
    # Bytes a second, from the slowest to the fastest way.
    way = chip.network, chip.link_bandwidth, chip.hbm_bandwidth
    assert way == tuple(sorted(way)), name
    # Products of bfloat16 need a few hundred operations a byte.
    assert 100 < chip.flops / chip.hbm_bandwidth < 600, name
    assert 0.95 * chip.hbm < chip.usable < 1.01 * chip.hbm or name == 'v4'
    assert 15 * chips.GIB < chip.usable < 100 * chips.GIB
    assert math.prod(chip.host) == (8 if name == 'h100' else 4)


def devices(shape):
  """Stand-ins with coordinates, in order."""
  return [
    types.SimpleNamespace(platform='cpu', coords=at, slice_index=0)
    for at in np.ndindex(*shape)
  ]


def test_seconds_by_hand():
  topology = topologies.parse('v5p:4x4x4')
  chip, found = topology.chip, devices((4, 4, 4))
  # On a ring of four: 0, 1, 2, 1 links; three axes; 63 others.
  hops = 3 * 16 * (0 + 1 + 2 + 1) / 63
  assert estimate.mean_hops(found, topology) == pytest.approx(hops)
  everyone = (tuple(range(64)),)
  ring = hlo.Collective('all-reduce', 640, everyone, 1)
  sent = 2 * 640 * 63 / 64 / chip.link_bandwidth
  assert estimate.collective_seconds(ring, found, topology) == sent
  across = hlo.Collective('all-to-all', 640, everyone, 3)
  sent = 640 * 63 / 64 * hops / chip.link_bandwidth
  total = estimate.seconds(
    topology, found, chip.flops / 2, chip.hbm_bandwidth, 1, [across]
  )
  assert total.compute == 0.5 and total.links == pytest.approx(3 * sent)
  assert total.step == total.memory + total.links == 1 + total.links
  assert total.least == 0.5
  send = hlo.Collective('send', 640, everyone, 1)
  sent = estimate.collective_seconds(send, found, topology)
  assert sent == 640 / chip.network
  # Two slices: half of an all-to-all leaves, by the network.
  for i, device in enumerate(found):
    device.slice_index = i // 32
  apart = estimate.collective_seconds(across, found, topology)
  assert apart == pytest.approx(640 * 63 / 64 * 32 / 63 / chip.network)


@pytest.mark.parametrize(
  'text',
  [
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in '
    'memory space hbm. Used 21.50G of 15.75G hbm. Exceeded hbm capacity by',
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
    'for HLO temporaries (21.50G) exceeds available HBM (15.75G).',
  ],
)
def test_an_overflow_says_how_much(text):
  used, of = int(21.5 * 2**30), int(15.75 * 2**30)
  found = program.overflow(text, 5)
  assert found == program.Memory(5, None, None, used, of)
  assert program.overflow(text.replace('RESOURCE_EXH', 'X'), 5) is None


def test_advice_is_what_helps():
  facts = advice.Facts(
    topology=topologies.parse('v5e:4x4'),
    mesh={'data': 4, 'expert': 4, 'model': 1},
    num_experts=(32, 32),
    state=12 * 2**30,
    gradients=6 * 2**30,
    needed=20 * 2**30,
    available=16 * 2**30,
    rows=64,
    microbatches=1,
    remat=False,
  )
  assert 'Does not fit: needs 20.00 GiB of 16.00 GiB' in advice.verdict(facts)
  told = advice.advice(facts)
  assert 'expert axis (16 in place of 4)' in told[0]
  assert 'model axis (2 in place of 1)' in told[1]
  assert any('microbatches=2' in x for x in told)
  assert any('v5p' in x for x in told) and 'v5e' not in told[-1]
  less = facts._replace(state=2**30, gradients=2**30)
  assert 'remat' in advice.advice(less)[0]
  assert advice.advice(facts._replace(available=32 * 2**30)) == []


@pytest.mark.parametrize('name', ['v5q:4x4', 'v5p', 'v5p:4', 'cpu:2x2', '4x4'])
def test_unknown_topologies(name):
  with pytest.raises(ValueError, match=r'v5p:4x4x4'):
    topologies.parse(name)


def flags(tmp_path, *changes):
  """Of an upcycled T5 of two layers a stack, whose data is not there."""
  paths = {'corpus': str(tmp_path / 'nothing'), 'dense': 'nothing'}
  lines = [
    *(f't5.preset.{name} = {value}' for name, value in tiny_runs.SIZES.items()),
    f"CORPUS = '{paths['corpus']}'",
    'NUM_EXPERTS = 8',
    'VOCAB_SIZE = 256',
    'text.span_corruption.batch_size = 16',
    'text.span_corruption.inputs_length = 16',
    *changes,
  ]
  return tiny_scripts.flags(['configs/upcycle_t5_laptop.gin'], lines)


def plan(*args):
  """The script in a process of its own, which sets what JAX reads."""
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  return subprocess.run(
    [sys.executable, 'scripts/plan.py', *map(str, args)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=env,
    check=False,
  )


def test_a_plan_on_cpus(tmp_path):
  mesh = '--mesh=data:2,expert:4,model:1'
  made = plan(*flags(tmp_path), '--topology=cpu:8', mesh, '--json')
  assert made.returncode == 0, made.stderr
  found = json.loads(made.stdout)
  assert found['mesh'] == {'data': 2, 'expert': 4, 'model': 1}
  # Two sparse layers: two all-to-alls forward and two backward in each.
  assert found['collectives']['all-to-all']['count'] == 8
  assert found['collectives']['all-to-all']['group'] == 4
  sparse = moe.MoeConfig(num_experts=8)
  decoder = moe.MoeConfig(num_experts=8, router=routing.top_k)
  config = t5.preset(
    't5_1_1_small',
    vocab_size=256,
    encoder_moe=sparse,
    decoder_moe=decoder,
    **tiny_runs.SIZES,
  )
  params = initialize.param_shapes(t5.T5(config))
  total = sum(x.size for x in jax.tree.leaves(params))
  # Three kernels of 16 x 24 an expert, 8 experts, two layers; 4 to share them.
  experts = 3 * 16 * 24 * 8 * 2
  assert found['parameters'] == {
    'count': total,
    'bytes': 4 * total,
    'bytes_per_device': 4 * (total - experts + experts // 4),
  }
  # Too small for Adafactor to factor: as many numbers, and a count.
  assert found['optimizer']['bytes'] == 4 * total + 4
  assert (
    found['fits'] is None
    and 'not those of an accelerator' in (found['verdict'])
  )
  assert found['operations']['matmuls'] * 8 > 6 * 16 * 16 * experts / 8
  assert 'seconds' not in found


@pytest.mark.parametrize(
  'args, said',
  [
    (['--topology=v5x:4x4'], 'There is no topology'),
    (['--topology=v5p:2x2x1'], 'upcycle[tpu-aot]'),
    (['--topology=h100:1x1x8'], 'jax-cuda12-plugin'),
    (['--topology=cpu:4', '--mesh=data:3,expert:1'], 'does not use 4 devices'),
    (['--topology=cpu:3', '--mesh=expert:3'], 'does not divide [8] experts'),
    (['--topology=cpu:4', '--mesh=expert:two'], 'is not like data:2'),
    (['--topology=cpu:1', '--batch_size=-6'], 'is not like ROWS'),
    (['--topology=cpu:1', '--lengths=inputs:9'], 'names both'),
  ],
)
def test_errors_say_what_to_do(tmp_path, monkeypatch, args, said):
  """In this process, with stand-ins for the devices of a new one."""
  monkeypatch.setattr(topologies, '_installed', lambda module: False)
  monkeypatch.setattr(topologies, '_cpu', lambda t: devices((t.chips,)))
  for name in topologies.environment(topologies.parse('v5p:2x2x1')):
    monkeypatch.setenv(name, os.environ.get(name, ''))
  monkeypatch.setenv('XLA_FLAGS', os.environ.get('XLA_FLAGS', ''))
  error = tiny_scripts.main(monkeypatch, 'plan.py', *flags(tmp_path), *args)
  assert said in error and error.count('\n') == 1


def test_rows_that_devices_cannot_share(tmp_path):
  args = '--topology=cpu:4', '--batch_size=6'
  made = plan(*flags(tmp_path), *args)
  assert made.returncode == 1
  assert '4 devices cannot share 6 rows' in made.stderr
  assert '--batch_size=8' in made.stderr and not made.stdout


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  """Of data alone: no run reads a checkpoint here."""
  folder = tmp_path_factory.mktemp('tiny')
  for name in ('glyphs', 'mnist'):
    tiny_vit_runs.local(folder, name, tiny_vit_runs.pictures())
  corpus = tiny_text.corpus(folder / 'corpus')
  return {'corpus': corpus, 'data': str(folder), 'dense': '', 'sparse': ''}


@pytest.mark.parametrize(
  'config, changes',
  [
    ('upcycle_t5_laptop', ()),
    ('upcycle_t5_laptop', ('text.span_corruption.packed = True',)),
    ('upcycle_t5_laptop', ('text.span_corruption.targets_length = 11',)),
    ('upcycle_t5_base', ()),
    ('upcycle_vit_laptop', ()),
    ('upcycle_vit_laptop', ('images.batches.mixup = 0.2',)),
    ('upcycle_vit_laptop', ('images.batches.num_labels = 3',)),
  ],
)
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_shapes_are_those_of_real_batches(
  config, changes, paths, tmp_path, monkeypatch
):
  monkeypatch.syspath_prepend(ROOT / 'scripts')
  gin_flags, script = map(importlib.import_module, ('gin_flags', 'plan'))
  text = (ROOT / f'configs/{config}.gin').read_text()
  tiny = tiny_vit_runs if 'vit' in config else tiny_runs
  lines = tiny.bindings(text, paths, tmp_path / 'run')
  gin.add_config_file_search_path(str(ROOT))
  try:
    gin.parse_config_files_and_bindings(
      [f'configs/{config}.gin'], [*lines, *changes]
    )
    model = gin_flags.bound(train.train, 'model')
    none = types.SimpleNamespace(batch_size='', lengths='')
    told = script._shapes(model, none)
    real = next(iter(gin_flags.bound(train.train, 'train_data')))
    rows = types.SimpleNamespace(batch_size='6', lengths='')
    assert {len(x) for x in real.values()} == {4}
    assert {x.shape[0] for x in script._shapes(model, rows).values()} == {6}
  finally:
    gin.clear_config()
  as_pairs = lambda xs: {k: (x.shape, x.dtype) for k, x in xs.items()}  # noqa: E731
  assert as_pairs(told) == as_pairs(real)


def test_data_of_which_nothing_is_known():
  config = t5.preset('t5_1_1_small')
  with pytest.raises(ValueError, match='--batch_size'):
    batches.of_source('own.stream', str, config, 8)
  lengths = {'inputs': 16, 'targets': 8}
  found = batches.of_source('own.stream', str, config, 8, lengths)
  assert found['encoder_input_tokens'].shape == (8, 16)
  assert found['decoder_input_tokens'].shape == (8, 8)
