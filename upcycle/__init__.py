# SPDX-License-Identifier: Apache-2.0
"""Sparse upcycling of dense checkpoints into mixtures of experts.

The way of data:
  checkpoints  a dense checkpoint comes in, lazily, under one set of names
  surgery      its parameters become those of a sparse model (expert_init) or
               of a deeper one (depth)
  models       T5 and ViT, whose MoE layers route tokens to experts and back
               (routing: logits to slots; dispatch: tokens to slots; experts)
  partition    all of this spread over devices (exchange: tokens meet experts)
  data         batches of text or images
  train        the run (initialize, optim, losses, evaluate, fewshot)
  results      metrics, progress, figures
"""
