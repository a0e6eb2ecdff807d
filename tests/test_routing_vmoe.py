# SPDX-License-Identifier: Apache-2.0
"""Routers against V-MoE's numbers: vision routers, noise, their losses."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import golden
from upcycle import dispatch, routing

VMOE, META = golden('vmoe_routing')
# Not among them by design: `token_choice_bf16` rounds tokens on their way, not
# the routing; `dense_einsum` has every expert process every token; `soft_moe`
# fills slots with mixtures of tokens, so it routes none.
KINDS = {'token_choice', 'token_choice_noisy', 'expert_choice'}
CASES = {x['case']: x for x in META['cases'] if x['kind'] in KINDS}
# The golden files' loss weights.
WEIGHTS = {'gshard': 0.3, 'importance': 0.5, 'load': 0.7}


def slots(case, S, E):
  return routing.capacity(
    S,
    E,
    case.get('K', 1) * case['capacity_factor'],
    multiple_of=case.get('capacity_multiple_of', 4) or 1,
    rounding='ceil',
  )


def router(case):
  if case['kind'] == 'expert_choice':
    return routing.expert_choice
  return functools.partial(
    routing.top_k,
    k=case['K'],
    batch_priority=case['batch_priority'],
    noise_std=1.0 if case['kind'] == 'token_choice_noisy' else 0.0,
  )


def combine_array(name, S, E, C):
  """V-MoE's combine weights [G, S, E, C], from its indices if it has those."""
  if f'{name}/indices' not in VMOE:
    return VMOE[f'{name}/combine_weights']
  indices, weights = VMOE[f'{name}/indices'], VMOE[f'{name}/combine_weights']
  out = np.zeros((len(indices), S, E, C), np.float32)
  for g, s, k in np.ndindex(weights.shape):
    e, c = indices[g, s, k]
    if c < C:
      out[g, s, e, c] = weights[g, s, k]
  return out


def experts(x, routed):
  """The golden files' experts: tanh(x) * (e + 1)."""
  y = dispatch.dispatch(x, routed.token)
  y = jnp.tanh(y) * jnp.arange(1.0, y.shape[1] + 1)[:, None, None]
  return dispatch.combine(y, routed.token, routed.weight, x.shape[1])


@pytest.mark.parametrize('name', CASES)
def test_agrees_with_vmoe(name, monkeypatch):
  case, inputs = CASES[name], name.split('/')[0]
  x = jnp.asarray(VMOE[f'{inputs}/inputs'])
  logits = jnp.einsum('gsm,me->gse', x, VMOE[f'{inputs}/kernel'])
  S, E = logits.shape[1:]
  key = None
  if case['kind'] == 'token_choice_noisy':
    key = jax.random.key(0)
    noise = jnp.asarray(VMOE[f'{name}/unit_noise'])
    monkeypatch.setattr(jax.random, 'normal', lambda key, shape: noise)

  C = slots(case, S, E)
  route = functools.partial(router(case), key=key)
  routed = route(logits, C)
  expected = combine_array(name, S, E, C)
  assert C == case.get('capacity', C) == expected.shape[-1]
  assert_close = functools.partial(
    np.testing.assert_allclose, rtol=1e-5, atol=1e-6
  )
  assert_close(routed.masks(S)[1], expected)
  if f'{name}/dispatch_weights' in VMOE:
    np.testing.assert_array_equal(
      routed.masks(S)[0], VMOE[f'{name}/dispatch_weights']
    )
  if f'{name}/combined' in VMOE:
    assert_close(experts(x, routed), VMOE[f'{name}/combined'])
  if f'{name}/renorm_combined' in VMOE:
    again = route(logits, C, renormalize=True)
    assert_close(experts(x, again), VMOE[f'{name}/renorm_combined'])
  if case['kind'] == 'expert_choice':
    some = VMOE[f'{name}/metrics/ratio_processed_items_by_at_least_1_experts']
    assert_close(routed.metrics['coverage'], some.mean())
    return
  total = 0.0
  for loss, weight in WEIGHTS.items():
    field = f'{name}/metrics/{loss}_loss'
    assert (loss in routed.aux) == (field in VMOE)
    if field in VMOE:
      assert_close(routed.aux[loss], VMOE[field].mean(), err_msg=field)
      total += weight * routed.aux[loss]
  assert_close(total, VMOE[f'{name}/metrics/auxiliary_loss'].mean())


def test_the_capacity_is_vmoes():
  """For every K, factor and size, but that here no expert has more than S."""
  sizes = [(12, 4), (16, 4), (49, 8), (196, 32), (197, 32), (576, 48)]
  for S, E in sizes:
    for K in (1, 2, 4, 8):
      for factor in (0.5, 1.0, 1.05, 1.25, 2.0):
        vmoe = math.ceil(S * K * factor / E)
        vmoe += -vmoe % 4
        case = {'K': K, 'capacity_factor': factor}
        assert slots(case, S, E) == min(vmoe, S), (S, E, K, factor)
