"""GPT-2 (Radford et al. 2019): learnt positions, LayerNorm, biases, one fused projection."""

from typing import Any

from perl.hub.config_json import Fields
from perl.hub.families._common import ACTIVATIONS, EPS, OUR_ACTIVATIONS
from perl.models.config import Config

ARCHITECTURE = 'GPT2'
CAUSAL = 'LMHeadModel'


def read(fields: Fields) -> dict[str, Any]:
  """Scores are scaled by 1 / sqrt(K) unless scale_attn_weights is false."""
  fields.only('scale_attn_by_inverse_layer_idx', False)
  fields.only('add_cross_attention', False)
  width, heads = fields.get('n_embd', 768), fields.get('n_head', 12)
  return {
    'vocab_size': fields.need('vocab_size'),
    'layers': fields.get('n_layer', 12),
    'width': width,
    'heads': heads,
    'kv_heads': heads,
    'head_dim': width // heads,
    'mlp_width': fields.get('n_inner', 4 * width),
    'tied': fields.get('tie_word_embeddings', True),
    'norm': 'layer',
    'norm_eps': fields.get('layer_norm_epsilon', 1e-5, EPS),
    'activation': fields.choice('activation_function', 'gelu_new', ACTIVATIONS),
    'gated': False,
    'qkv_bias': True,
    'out_bias': True,
    'mlp_bias': True,
    'position': 'learnt',
    'max_positions': fields.get('n_positions', 1024),
    'query_scale': None if fields.get('scale_attn_weights', True) else 1.0,
  }


def write(config: Config) -> dict[str, Any]:
  """The inverse of `read`."""
  return {
    'vocab_size': config.vocab_size,
    'n_layer': config.layers,
    'n_embd': config.width,
    'n_head': config.heads,
    'n_inner': config.mlp_width,
    'n_positions': config.max_positions,
    'tie_word_embeddings': config.tied,
    'layer_norm_epsilon': config.norm_eps,
    'activation_function': OUR_ACTIVATIONS[config.activation],
    'scale_attn_weights': config.query_scale is None,
  }
