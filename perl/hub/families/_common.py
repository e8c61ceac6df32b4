"""What families share: the fields of Llama's config.json, rotary positions, alternating windows."""

import math
from typing import Any

from perl import documents
from perl.documents import number
from perl.hub.config_json import Fields, Unsupported
from perl.models.config import Config
from perl.models.rope import Scaling

ACTIVATIONS = {
  'silu': 'silu', 'swish': 'silu', 'gelu': 'gelu', 'gelu_python': 'gelu', 'relu': 'relu',
  'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_new': 'gelu_tanh', 'gelu_fast': 'gelu_tanh',
  'gelu_python_tanh': 'gelu_tanh',
}
"""transformers' name -> ours; several of theirs are one function."""

EPS = number(0.0, 1.0)
THETA = number(1.0, 1e12)
_FACTOR = number(1e-6, 1e9)
_ROPE = {
  'rope_theta': THETA, 'rope_type': documents.TEXT, 'type': documents.TEXT,
  'truncate': documents.FLAG, 'original_max_position_embeddings': documents.whole(1),
  **dict.fromkeys((
    'factor', 'low_freq_factor', 'high_freq_factor', 'beta_fast', 'beta_slow', 'attention_factor',
    'mscale', 'mscale_all_dim'), _FACTOR),
}
"""What the fields of rotary positions have to be; `read_scaling` refuses others by name."""

OUR_ACTIVATIONS = {
  'silu': 'silu', 'gelu': 'gelu', 'relu': 'relu', 'gelu_tanh': 'gelu_pytorch_tanh'}


def read_llama(fields: Fields, *, activation: str = 'hidden_act', default: str = 'silu') -> dict:
  """The options of Config that Llama and all who follow it write alike."""
  width, heads = fields.need('hidden_size'), fields.need('num_attention_heads')
  return {
    'vocab_size': fields.need('vocab_size'),
    'layers': fields.need('num_hidden_layers'),
    'width': width,
    'heads': heads,
    'kv_heads': fields.get('num_key_value_heads', heads),
    'head_dim': fields.get('head_dim', width // heads),
    'mlp_width': fields.need('intermediate_size'),
    'norm_eps': fields.get('rms_norm_eps', 1e-6, EPS),
    'activation': fields.choice(activation, default, ACTIVATIONS),
    'max_positions': fields.need('max_position_embeddings'),
  }


def write_llama(config: Config, *, activation: str = 'hidden_act') -> dict[str, Any]:
  """The inverse of `read_llama`, with the biases and the tie left to the family."""
  return {
    'vocab_size': config.vocab_size,
    'num_hidden_layers': config.layers,
    'hidden_size': config.width,
    'num_attention_heads': config.heads,
    'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_dim,
    'intermediate_size': config.mlp_width,
    'rms_norm_eps': config.norm_eps,
    activation: OUR_ACTIVATIONS[config.activation],
    'max_position_embeddings': config.max_positions,
    'tie_word_embeddings': config.tied,
    'rope_theta': config.rope_theta,
    'rope_scaling': write_scaling(config.rope_scaling),
  }


def read_rope(fields: Fields, *, theta: str = 'rope_theta', turns_a_part: bool = False) -> dict:
  """rope_theta and rope_scaling, as transformers 4 or 5 writes them.

  Args:
    fields: the file's.
    theta: the older name of rope_theta.
    turns_a_part: the family reads partial_rotary_factor itself; where none does, it is refused.
  """
  rope = rope_fields(fields, 'rope_parameters', 'rope_scaling')
  older = fields.get(theta, 10_000.0, THETA)
  base = rope.pop('rope_theta', None) or older
  if turns_a_part:
    rope.pop('partial_rotary_factor', None)
  return {
    'rope_theta': float(base),
    'rope_scaling': read_scaling(rope, fields.need('max_position_embeddings')),
  }


def rope_fields(fields: Fields, *names: str) -> dict[str, Any]:
  """The fields of rotary positions in these objects, later ones before earlier, without nulls.

  Raises:
    Unsupported: one is of another kind than it should be.
  """
  rope = {k: v for name in names for k, v in fields.get(name, {}).items() if v is not None}
  return check_rope(fields, rope)


def check_rope(fields: Fields, rope: Any) -> dict[str, Any]:
  """An object of rotary positions, without nulls; raises as `rope_fields`."""
  rope = fields.check('rotary positions', rope or {}, documents.OBJECT)
  return {name: fields.check(name, value, _ROPE.get(name, documents.ANY))
          for name, value in rope.items() if value is not None}


def read_scaling(rope: dict[str, Any], positions: int) -> Scaling | None:
  """The scaling that a rope_scaling (or rope_parameters) says; None for none.

  Args:
    rope: without rope_theta.
    positions: max_position_embeddings, where the context of the first training is not named.

  Raises:
    Unsupported: a kind or an option that is not known, by name.
  """
  rope = {name: value for name, value in rope.items() if value is not None}
  rope = {n: v for n, v in rope.items() if (n, v) != ('partial_rotary_factor', 1.0)}
  kind = rope.pop('rope_type', None) or rope.get('type', 'default')
  rope.pop('type', None)
  if kind == 'default':
    options = {}
  elif kind == 'linear':
    options = {'factor': rope.pop('factor', None)}
  elif kind == 'llama3':
    names = ('factor', 'low_freq_factor', 'high_freq_factor')
    options = {name: rope.pop(name, None) for name in names}
    options['original_positions'] = rope.pop('original_max_position_embeddings', positions)
  elif kind == 'yarn':
    options = _read_yarn(rope, positions)
  else:
    raise Unsupported(
      f"expected rotary positions of type 'default', 'linear', 'llama3' or 'yarn' in config.json, "
      f'found {kind!r:.60}; that is not supported, use a model without it')
  rope.pop('original_max_position_embeddings', None)  # of no effect in the other kinds
  lacking = [name for name, value in options.items() if value is None]
  if rope or lacking:
    raise Unsupported(
      f'expected the options of {kind!r} rotary positions in config.json, found '
      f'{f"none called {lacking[0]}" if lacking else f"also {rope!r:.200}"}; that is not supported')
  numbers = {n: v if n in ('truncate', 'original_positions') else float(v)
             for n, v in options.items()}
  return Scaling(kind, **numbers) if options else None


def _read_yarn(rope: dict[str, Any], positions: int) -> dict[str, Any]:
  original = rope.pop('original_max_position_embeddings', positions)
  factor = rope.pop('factor', None) or positions / original
  mscale, all_dim = rope.pop('mscale', None), rope.pop('mscale_all_dim', None)
  gain = lambda m: 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0
  sharper = gain(mscale) / gain(all_dim) if mscale and all_dim else gain(1.0)
  return {
    'factor': factor, 'original_positions': original,
    'beta_fast': rope.pop('beta_fast', None) or 32.0,
    'beta_slow': rope.pop('beta_slow', None) or 1.0,
    'truncate': rope.pop('truncate', True),
    'attention_factor': rope.pop('attention_factor', sharper),
  }


def write_scaling(scaling: Scaling | None) -> dict[str, Any] | None:
  """The inverse of `read_scaling`."""
  if scaling is None:
    return None
  written = {'rope_type': scaling.kind, 'factor': scaling.factor}
  names = {
    'linear': (), 'llama3': ('low_freq_factor', 'high_freq_factor'),
    'yarn': ('beta_fast', 'beta_slow', 'truncate', 'attention_factor'),
  }[scaling.kind]
  written |= {name: getattr(scaling, name) for name in names}
  if scaling.kind != 'linear':
    written['original_max_position_embeddings'] = scaling.original_positions
  return written


def read_window(fields: Fields) -> int | None:
  """sliding_window: null is none, and it is 4,096 where the file does not say."""
  absent = not fields.has('sliding_window')
  return fields.get('sliding_window', 4096) if absent else fields.get(
    'sliding_window', kind=documents.whole(1))


def read_windows(fields: Fields, layers: int, default: list[bool], window: int | None) -> dict:
  """window and window_layers, from layer_types or the default pattern."""
  types = fields.get('layer_types', kind=documents.items(documents.TEXT))
  if types is not None:
    known = {'sliding_attention': True, 'full_attention': False}
    if len(types) != layers or not set(types) <= set(known):
      raise Unsupported(
        f'expected layer_types of {layers} layers among {", ".join(known)} in {fields.where}, '
        f'found {types!r:.200}; that is not supported')
    default = [known[name] for name in types]
  if window is None or not any(default):
    return {}
  return {'window': window} | ({} if all(default) else {'window_layers': tuple(default)})


def write_windows(config: Config) -> dict[str, Any]:
  """sliding_window and layer_types."""
  types = ['full_attention' if w is None else 'sliding_attention' for w in config.windows]
  return {'sliding_window': config.window, 'layer_types': types}
