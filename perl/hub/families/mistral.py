"""Mistral 7B (arXiv 2310.06825): Llama with a sliding window (dropped again from v0.2 on)."""

from typing import Any

from perl.hub.config_json import Fields
from perl.hub.families import _common as common
from perl.models.config import Config

ARCHITECTURE = 'Mistral'


def read(fields: Fields) -> dict[str, Any]:
  """sliding_window null is none, and 4,096 where the file does not say."""
  window = common.read_window(fields)
  options = common.read_llama(fields) | common.read_rope(fields)
  return options | {'tied': fields.get('tie_word_embeddings', False), 'window': window}


def write(config: Config) -> dict[str, Any]:
  """The inverse of `read`."""
  return common.write_llama(config) | {'sliding_window': config.window}
