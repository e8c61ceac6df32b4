"""Gemma 2 (arXiv 2408.00118): soft caps, norms after sublayers, windows in every other layer."""

from typing import Any

from perl.documents import number
from perl.hub.config_json import Fields
from perl.hub.families import _common as common
from perl.hub.families import gemma
from perl.models.config import Config

ARCHITECTURE = 'Gemma2'


def read(fields: Fields) -> dict[str, Any]:
  """An absent soft cap is the release's; null is none."""
  options = gemma.read_gemma(fields, 'hidden_activation') | common.read_rope(fields)
  layers = options['layers']
  return options | window_and_caps(fields, [i % 2 == 0 for i in range(layers)], (50.0, 30.0))


def window_and_caps(fields: Fields, pattern: list[bool], caps: tuple) -> dict[str, Any]:
  """What Gemma 2 and 3 write alike.

  Args:
    fields: the file's.
    pattern: which layers have the window, where the file does not say.
    caps: of the attention's and the output's logits, where the file has no such field.
  """
  cap = lambda name, default: fields.get(
    name, None if fields.has(name) else default, number(1e-3, 1e9))
  window = common.read_window(fields)
  fields.only('sliding_window_size', window)  # a second name, in the releases of 9B and 27B
  return common.read_windows(fields, len(pattern), pattern, window) | {
    'post_norm': True,
    'query_scale': fields.get('query_pre_attn_scalar', 256, number(1e-6, 1e9)) ** -0.5,
    'attention_softcap': cap('attn_logit_softcapping', caps[0]),
    'final_softcap': cap('final_logit_softcapping', caps[1]),
  }


def write(config: Config) -> dict[str, Any]:
  """The inverse of `read`."""
  written = common.write_llama(config, activation='hidden_activation')
  return written | common.write_windows(config) | {
    'attention_bias': config.qkv_bias,
    'query_pre_attn_scalar': _scalar(config),
    'attn_logit_softcapping': config.attention_softcap,
    'final_logit_softcapping': config.final_softcap,
  }


def _scalar(config: Config) -> float:
  """query_scale^-2: the whole number that gives it, if one does."""
  scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
  whole = round(scale**-2)
  return whole if whole and whole**-0.5 == scale else scale**-2
