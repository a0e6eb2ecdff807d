# SPDX-License-Identifier: Apache-2.0
"""What experiments/20_scaling/fit.py has written, for those who read it."""

from collections.abc import Mapping

import numpy as np

from upcycle.results import tables


def table(fits: Mapping[str, Mapping]) -> tables.Table:
  """A row a parameter, and one a dense budget.

  Args:
    fits: by modality, of one scale of fit.json.
  """
  found = []
  for modality, fitted in fits.items():
    found += [
      {'of': modality, 'what': name, 'value': _known(value)}
      for name, value in fitted['law'].items()
    ]
    for crossing in fitted['crossings']:
      share, beyond = _crossing(crossing)
      what = (
        'scratch is better after, as a share of a dense budget of '
        f'{crossing["dense"]:.3g}{beyond}'
      )
      found.append({'of': modality, 'what': what, 'value': share})
  return found


def answers(fits: Mapping[str, Mapping]) -> dict[str, str]:
  """By modality when scratch overtakes the upcycled model of the most D."""
  found = {}
  for modality, fitted in fits.items():
    largest = max(fitted['crossings'], key=lambda one: one['dense'])
    share, beyond = _crossing(largest)
    found[modality] = (
      f'times the dense cost after which scratch is better: '
      f'{tables.cell(share)}{beyond}'
    )
  return found


def _crossing(crossing: Mapping) -> tuple[dict[str, float], str]:
  """As a share of the dense budget, and whether that was not measured."""
  share = _known(crossing['share'])
  end = share['mean'] * crossing['dense']
  return share, ', extrapolated' if end > crossing['measured'] else ''


def _known(value: Mapping[str, float | None]) -> dict[str, float]:
  """Without the nulls that JSON has for infinity."""
  return {k: np.inf if x is None else x for k, x in value.items()}
