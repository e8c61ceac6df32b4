"""GPT-NeoX and Pythia (arXiv 2204.06745, 2304.01373): attention and MLP read one input."""

from typing import Any

from perl.documents import number
from perl.hub.config_json import Fields
from perl.hub.families import _common as common
from perl.models.config import Config

ARCHITECTURE = 'GPTNeoX'


def read(fields: Fields) -> dict[str, Any]:
  """rotary_pct and rotary_emb_base are the older names of two rope_parameters."""
  width, heads = fields.need('hidden_size'), fields.need('num_attention_heads')
  bias = fields.get('attention_bias', True)
  fraction = fields.get('rotary_pct', 0.25)
  for name in ('rope_parameters', 'rope_scaling'):
    fraction = fields.get(name, {}).get('partial_rotary_factor', fraction)
  fraction = fields.check('the part of a head that rotates', fraction, number(0.0, 1.0))
  rope = common.read_rope(fields, theta='rotary_emb_base', turns_a_part=True)
  # transformers 4 wrote both beside the two that it, and 5, goes by.
  fields.only('partial_rotary_factor', fraction)
  fields.only('rope_theta', rope['rope_theta'])
  return rope | {
    'rope_fraction': float(fraction),
    'vocab_size': fields.need('vocab_size'),
    'layers': fields.need('num_hidden_layers'),
    'width': width,
    'heads': heads,
    'kv_heads': heads,
    'head_dim': width // heads,
    'mlp_width': fields.need('intermediate_size'),
    'tied': fields.get('tie_word_embeddings', False),
    'norm': 'layer',
    'norm_eps': fields.get('layer_norm_eps', 1e-5, common.EPS),
    'activation': fields.choice('hidden_act', 'gelu', common.ACTIVATIONS),
    'gated': False,
    'qkv_bias': bias,
    'out_bias': bias,
    'mlp_bias': True,
    'max_positions': fields.need('max_position_embeddings'),
    'parallel': fields.get('use_parallel_residual', True),
  }


def write(config: Config) -> dict[str, Any]:
  """The inverse of `read`."""
  return {
    'vocab_size': config.vocab_size,
    'num_hidden_layers': config.layers,
    'hidden_size': config.width,
    'num_attention_heads': config.heads,
    'intermediate_size': config.mlp_width,
    'max_position_embeddings': config.max_positions,
    'tie_word_embeddings': config.tied,
    'layer_norm_eps': config.norm_eps,
    'hidden_act': common.OUR_ACTIVATIONS[config.activation],
    'attention_bias': config.qkv_bias,
    'use_parallel_residual': config.parallel,
    'rotary_pct': config.rope_fraction,
    'rotary_emb_base': config.rope_theta,
    'rope_scaling': common.write_scaling(config.rope_scaling),
  }
