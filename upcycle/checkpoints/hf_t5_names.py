# SPDX-License-Identifier: Apache-2.0
"""Names of Hugging Face's T5: a table of pairs that serves both directions."""

from collections.abc import Mapping

from upcycle.checkpoints import naming

EMBEDDING = 'shared.weight'


def _layer(
  theirs: str, ours: str, names: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
  return tuple(
    (f'{theirs}.{name}.weight', f'{ours}/{target}')
    for name, target in names.items()
  )


_ATTENTION = {
  'q': 'query/kernel',
  'k': 'key/kernel',
  'v': 'value/kernel',
  'o': 'out/kernel',
}
_MLP = {name: f'{name}/kernel' for name in ('wi', 'wi_0', 'wi_1', 'wo')}
_ENCODER, _OUR_ENCODER = 'encoder.block.#.layer', 'encoder/layers_#'
_DECODER, _OUR_DECODER = 'decoder.block.#.layer', 'decoder/layers_#'
_CROSS = 'encoder_decoder_attention'
_BIAS = 'relative_attention_bias.weight'
# Their name and ours, which serve both directions.
NAMES = (
  (EMBEDDING, 'token_embedder/embedding'),
  ('lm_head.weight', 'decoder/logits_dense/kernel'),
  ('encoder.final_layer_norm.weight', 'encoder/encoder_norm/scale'),
  ('decoder.final_layer_norm.weight', 'decoder/decoder_norm/scale'),
  (
    f'encoder.block.0.layer.0.SelfAttention.{_BIAS}',
    'encoder/relpos_bias/rel_embedding',
  ),
  (
    f'decoder.block.0.layer.0.SelfAttention.{_BIAS}',
    'decoder/relpos_bias/rel_embedding',
  ),
  *_layer(
    f'{_ENCODER}.0.SelfAttention', f'{_OUR_ENCODER}/attention', _ATTENTION
  ),
  *_layer(
    f'{_DECODER}.0.SelfAttention', f'{_OUR_DECODER}/self_attention', _ATTENTION
  ),
  *_layer(
    f'{_DECODER}.1.EncDecAttention', f'{_OUR_DECODER}/{_CROSS}', _ATTENTION
  ),
  *_layer(f'{_ENCODER}.1.DenseReluDense', f'{_OUR_ENCODER}/mlp', _MLP),
  *_layer(f'{_DECODER}.2.DenseReluDense', f'{_OUR_DECODER}/mlp', _MLP),
  *_layer(
    _ENCODER,
    _OUR_ENCODER,
    {
      '0.layer_norm': 'pre_attention_layer_norm/scale',
      '1.layer_norm': 'pre_mlp_layer_norm/scale',
    },
  ),
  *_layer(
    _DECODER,
    _OUR_DECODER,
    {
      '0.layer_norm': 'pre_self_attention_layer_norm/scale',
      '1.layer_norm': 'pre_cross_attention_layer_norm/scale',
      '2.layer_norm': 'pre_mlp_layer_norm/scale',
    },
  ),
)
# The published T5 1.0 files hold this; no model uses it.
IDLE = (f'decoder.block.0.layer.1.EncDecAttention.{_BIAS}', naming.UNUSED)
