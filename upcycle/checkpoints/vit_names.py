# SPDX-License-Identifier: Apache-2.0
"""Names that vit_jax, big_vision and vmoe give to a ViT's parameters."""

from upcycle.checkpoints.vit_shapes import ATTENTION, POSITIONS

_BLOCK = r'Transformer/encoderblock_(\d+)'
_OWN_BLOCK = r'Transformer/encoderblock_\1'
_ENDS = (r'cls|(embedding|pre_logits|head)/.+', r'\g<0>')
# big_vision's models/vit.py was written to match the names of vit_jax. Before
# Linen, submodules were numbered across their classes: 0, 1, 2, 3.
_VIT_JAX = (
  _ENDS,
  (r'(?:Transformer/)?(?:posembed_input/)?pos_embedding', POSITIONS),
  (rf'{_BLOCK}/(LayerNorm_0|Moe)/(.+)', rf'{_OWN_BLOCK}/\2/\3'),
  (rf'{_BLOCK}/LayerNorm_[12]/(.+)', rf'{_OWN_BLOCK}/LayerNorm_1/\2'),
  (
    rf'{_BLOCK}/MultiHeadDotProductAttention_[01]/(.+)',
    rf'{_OWN_BLOCK}/{ATTENTION}/\2',
  ),
  (rf'{_BLOCK}/MlpBlock_[03]/(.+)', rf'{_OWN_BLOCK}/MlpBlock_0/\2'),
  (r'Transformer/encoder_norm/.+', r'\g<0>'),
  # The parts of ViT-G's head lay at the root at first.
  (r'(?:MAPHead_0/)?probe', 'MAPHead_0/probe'),
  (
    r'(?:MAPHead_0/)?((?:MultiHeadDotProductAttention|LayerNorm|MlpBlock)_0/.+)',
    r'MAPHead_0/\1',
  ),
)
_VMOE = (
  _ENDS,
  (
    r'Encoder/((?:posembed_input|encoder_norm)/.+'
    r'|encoderblock_\d+/(?:LayerNorm_[01]|Moe)/.+)',
    r'Transformer/\1',
  ),
  (
    r'Encoder/(encoderblock_\d+)/SelfAttention/(.+)',
    rf'Transformer/\1/{ATTENTION}/\2',
  ),
  (r'Encoder/(encoderblock_\d+)/Mlp/(.+)', r'Transformer/\1/MlpBlock_0/\2'),
  (r'MapHead/probe', 'MAPHead_0/probe'),
  (
    r'MapHead/(MultiHeadDotProductAttention|LayerNorm)/(.+)',
    r'MAPHead_0/\1_0/\2',
  ),
  (r'MapHead/Mlp/(.+)', r'MAPHead_0/MlpBlock_0/\1'),
)
# By whose names they are; the one that knows most names of a file is taken.
TABLES = {'vit_jax or big_vision': _VIT_JAX, 'vmoe': _VMOE}
