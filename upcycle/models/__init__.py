# SPDX-License-Identifier: Apache-2.0
"""Flax modules: layers, the MoE layer, T5."""
