"""Qwen3, dense (arXiv 2505.09388): a norm on each query and key head in place of Qwen2's biases."""

from typing import Any

from perl.hub.config_json import Fields
from perl.hub.families import _common as common
from perl.hub.families import qwen2
from perl.models.config import Config

ARCHITECTURE = 'Qwen3'


def read(fields: Fields) -> dict[str, Any]:
  """head_dim is 128 where the file does not say; attention_bias is of all four projections."""
  bias = fields.get('attention_bias', False)
  options = common.read_llama(fields) | common.read_rope(fields) | qwen2.windows(fields)
  return options | {
    'head_dim': fields.get('head_dim', 128),
    'tied': fields.get('tie_word_embeddings', False),
    'qkv_bias': bias,
    'out_bias': bias,
    'qk_norm': True,
  }


def write(config: Config) -> dict[str, Any]:
  """The inverse of `read`."""
  return qwen2.write(config) | {'attention_bias': config.qkv_bias}
