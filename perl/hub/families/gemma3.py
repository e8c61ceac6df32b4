"""Gemma 3 with a vision tower: its text model alone is read, and written as gemma3_text."""

from typing import Any

from perl.documents import OBJECT
from perl.hub.config_json import Fields
from perl.hub.families import gemma3_text

ARCHITECTURE = 'Gemma3'

VISION = (
  'vision_config', 'mm_tokens_per_image', 'boi_token_index', 'eoi_token_index',
  'image_token_index', 'boi_token_id', 'eoi_token_id', 'image_token_id',
)


def read(fields: Fields) -> dict[str, Any]:
  """The text_config's, whose vocabulary and tie may stand beside it."""
  for name in VISION:
    fields.get(name)
  # The releases write only what differs from the text model's defaults in transformers.
  defaults = {
    'vocab_size': 262_208, 'hidden_size': 2304, 'intermediate_size': 9216,
    'num_hidden_layers': 26, 'num_attention_heads': 8, 'num_key_value_heads': 4,
    'max_position_embeddings': 131_072,
  }
  inner = Fields({**defaults, **fields.need('text_config', OBJECT)},
                 f'text_config of {fields.where}')
  options = gemma3_text.read(inner)
  inner.check_rest()
  return options | {'tied': fields.get('tie_word_embeddings', options['tied'])}
