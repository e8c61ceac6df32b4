"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): Llama with biases on queries, keys, values."""

from typing import Any

from perl.documents import whole
from perl.hub.config_json import Fields
from perl.hub.families import _common as common
from perl.models.config import Config

ARCHITECTURE = 'Qwen2'


def read(fields: Fields) -> dict[str, Any]:
  """Where use_sliding_window is set, layers from max_window_layers on have the window."""
  options = common.read_llama(fields) | common.read_rope(fields) | windows(fields)
  return options | {'tied': fields.get('tie_word_embeddings', False), 'qkv_bias': True}


def windows(fields: Fields) -> dict[str, Any]:
  """The window of each layer, as Qwen2 and Qwen3 write it."""
  layers = fields.need('num_hidden_layers')
  window, first = fields.get('sliding_window', 4096), fields.get('max_window_layers', 28, whole())
  if not fields.get('use_sliding_window', False):
    window = None  # the releases name one all the same
  return common.read_windows(fields, layers, [i >= first for i in range(layers)], window)


def write(config: Config) -> dict[str, Any]:
  """The inverse of `read`."""
  return common.write_llama(config) | common.write_windows(config) | {
    'use_sliding_window': config.window is not None,
  }
