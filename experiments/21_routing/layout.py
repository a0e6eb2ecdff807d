# SPDX-License-Identifier: Apache-2.0
"""Panels and their titles."""

import re

NAMES = {'language': 'T5', 'vision': 'ViT'}


def grid(panels, width, height, columns=1):
  """A figure of enough panels, those that are not needed left blank."""
  import matplotlib.pyplot as plt

  rows = -(-panels // columns)
  figure, axes = plt.subplots(
    rows, columns, figsize=(width, 0.6 + height * rows), squeeze=False
  )
  for axis in axes.flat[panels:]:
    axis.set_axis_off()
  return figure, axes.ravel()


def title(name, layer):
  kind = next((x for x in ('encoder/', 'decoder/') if x in layer), 'block ')
  number = int(re.search(r'_(\d+)', layer)[1])
  words = f'{kind.replace("/", " layer ")}{number}'
  return f'{NAMES[name]}, {words}' if name else words


def label_lowest(axes, label):
  for axis in axes[-2:]:
    axis.set_xlabel(label)
