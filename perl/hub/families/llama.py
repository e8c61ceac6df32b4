"""Llama 2 and 3 (arXiv 2307.09288, 2407.21783), and the many that use their architecture."""

from typing import Any

from perl.hub.config_json import Fields
from perl.hub.families import _common as common
from perl.models.config import Config

ARCHITECTURE = 'Llama'


def read(fields: Fields) -> dict[str, Any]:
  """attention_bias is of all four projections."""
  bias = fields.get('attention_bias', False)
  options = common.read_llama(fields) | common.read_rope(fields)
  return options | {
    'tied': fields.get('tie_word_embeddings', False),
    'qkv_bias': bias,
    'out_bias': bias,
    'mlp_bias': fields.get('mlp_bias', False),
  }


def write(config: Config) -> dict[str, Any]:
  """The inverse of `read`."""
  return common.write_llama(config) | {
    'attention_bias': config.qkv_bias, 'mlp_bias': config.mlp_bias,
  }
