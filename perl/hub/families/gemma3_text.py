"""Gemma 3, text (arXiv 2503.19786): five layers with a window, then one without, and qk-norm."""

from typing import Any

from perl.hub.config_json import Fields, Unsupported
from perl.hub.families import _common as common
from perl.hub.families import gemma, gemma2
from perl.models.config import Config

ARCHITECTURE = 'Gemma3'


def read(fields: Fields) -> dict[str, Any]:
  """Layers with a window turn by rope_local_base_freq, and are never scaled."""
  options = gemma.read_gemma(fields, 'hidden_activation')
  period = fields.get('sliding_window_pattern', fields.get('_sliding_window_pattern', 6))
  pattern = [bool((i + 1) % period) for i in range(options['layers'])]
  # transformers reads it and does nothing with it; the releases have none.
  fields.only('attn_logit_softcapping')
  options |= gemma2.window_and_caps(fields, pattern, (None, None))
  return options | {'qk_norm': True} | _read_rope(fields, options)


def _read_rope(fields: Fields, options: dict) -> dict[str, Any]:
  rope = fields.get('rope_parameters', {})
  whole = common.check_rope(fields, rope.get('full_attention'))
  whole |= common.rope_fields(fields, 'rope_scaling')
  local = common.check_rope(fields, rope.get('sliding_attention'))
  older = fields.get('rope_theta', 1e6, common.THETA)
  older_local = fields.get('rope_local_base_freq', 1e4, common.THETA)
  theta = float(whole.pop('rope_theta', None) or older)
  local_theta = float(local.pop('rope_theta', None) or older_local)
  positions = options['max_positions']
  if common.read_scaling(local, positions) is not None:
    raise Unsupported(
      f'expected rotary positions without scaling in layers with a window, found {local}; that is '
      'not supported')
  scaling = common.read_scaling(whole, positions)
  alone = 'window' not in options or (theta == local_theta and scaling is None)
  return {
    'rope_theta': theta, 'rope_scaling': scaling,
    'rope_local_theta': None if alone else local_theta,
  }


def write(config: Config) -> dict[str, Any]:
  """The inverse of `read`."""
  local = config.rope_theta if config.rope_local_theta is None else config.rope_local_theta
  return gemma2.write(config) | {'rope_local_base_freq': local}
