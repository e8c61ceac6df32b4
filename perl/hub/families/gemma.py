"""Gemma 1 (arXiv 2403.08295): norms stored as 1 + w, embeddings times sqrt(D), a gate of GELU."""

from typing import Any

from perl.hub.config_json import Fields
from perl.hub.families import _common as common
from perl.models.config import Config

ARCHITECTURE = 'Gemma'


def read(fields: Fields) -> dict[str, Any]:
  """hidden_act 'gelu' of the first releases means its tanh form, as in transformers."""
  name = 'hidden_activation' if fields.get('hidden_activation') else 'hidden_act'
  options = read_gemma(fields, name) | common.read_rope(fields)
  legacy = fields.get(name) == 'gelu'
  return options | ({'activation': 'gelu_tanh'} if legacy else {})


def read_gemma(fields: Fields, activation: str) -> dict[str, Any]:
  """The options that all Gemmas write alike."""
  fields.only('use_bidirectional_attention', False)
  bias = fields.get('attention_bias', False)
  options = common.read_llama(fields, activation=activation, default='gelu_pytorch_tanh')
  return options | {
    'head_dim': fields.get('head_dim', 256),
    'tied': fields.get('tie_word_embeddings', True),
    'qkv_bias': bias,
    'out_bias': bias,
    'norm_offset': True,
    'embed_scale': True,
  }


def write(config: Config) -> dict[str, Any]:
  """The inverse of `read`."""
  return common.write_llama(config) | {'attention_bias': config.qkv_bias}
