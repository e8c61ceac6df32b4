"""The config.json that a GGUF file's fields mean: one table an architecture.

Names of the fields: gguf-py/gguf/constants.py of llama.cpp. A field of the architecture that no
table has is refused by name: it may change the mathematics. What llama.cpp takes for granted and
writes in no field (Gemma's query scale, which layers have a window) stands here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from perl import documents
from perl.documents import TEXT
from perl.hub.config_json import Unsupported
from perl.hub.gguf_header import Header
from perl.hub.gguf_tensors import read_place
from perl.hub.tensors import CorruptTensors
from perl.models import rope
from perl.models.config import MOST

_SIZE = documents.whole(1, MOST['mlp_width'])
_EPS, _THETA = documents.number(0.0, 1.0), documents.number(1.0, 1e12)
_FACTOR = documents.number(1e-6, 1e9)

_LLAMA = {  # their field, after the architecture's name -> (ours of config.json, what it may be)
  'block_count': ('num_hidden_layers', documents.whole(1, MOST['layers'])),
  'context_length': ('max_position_embeddings', documents.whole(1)),
  'embedding_length': ('hidden_size', _SIZE),
  'feed_forward_length': ('intermediate_size', _SIZE),
  'attention.head_count': ('num_attention_heads', _SIZE),
  'attention.head_count_kv': ('num_key_value_heads', _SIZE),
  'attention.key_length': ('head_dim', _SIZE),
  'attention.layer_norm_rms_epsilon': ('rms_norm_eps', _EPS),
  'rope.freq_base': ('rope_theta', _THETA),
}
_GEMMA_2 = _LLAMA | {
  'attention.sliding_window': ('sliding_window', documents.whole(1)),
  'attn_logit_softcapping': ('attn_logit_softcapping', _FACTOR),
  'final_logit_softcapping': ('final_logit_softcapping', _FACTOR),
}
_GPT2 = {
  'block_count': ('n_layer', documents.whole(1, MOST['layers'])),
  'context_length': ('n_positions', documents.whole(1)),
  'embedding_length': ('n_embd', _SIZE),
  'feed_forward_length': ('n_inner', _SIZE),
  'attention.head_count': ('n_head', _SIZE),
  'attention.layer_norm_epsilon': ('layer_norm_epsilon', _EPS),
}
_NEEDED = ('block_count', 'context_length', 'embedding_length', 'feed_forward_length',
           'attention.head_count')
_BESIDE = ('vocab_size', 'rope.dimension_count', 'attention.value_length', 'expert_count',
           'expert_used_count', 'attention.causal')
"""Read here, or of models that are refused."""
_SCALINGS = {
  'factor': 'factor', 'original_context_length': 'original_max_position_embeddings',
  'attn_factor': 'attention_factor', 'yarn_beta_fast': 'beta_fast', 'yarn_beta_slow': 'beta_slow',
}
_LLAMA_3 = dict(original_positions=8192, low_freq_factor=1.0, high_freq_factor=4.0)
"""Of all Llama 3.1 to 3.3; the file has the result alone, as a tensor."""


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One that can be read.

  Attributes:
    model_type: of config.json.
    fields: their field -> (ours, what it may be).
    complete: adds what the file does not say, given the file's architecture and our fields.
  """

  model_type: str
  name: str
  fields: Mapping[str, tuple[str, documents.Kind]]
  complete: Callable[[Header, dict[str, Any]], dict[str, Any]]


def _llama(header: Header, about: dict[str, Any]) -> dict[str, Any]:
  del about
  has = lambda end: f'blk.0.{end}.bias' in header.tensors
  return {'attention_bias': has('attn_q'), 'mlp_bias': has('ffn_up')}


def _qwen2(header: Header, about: dict[str, Any]) -> dict[str, Any]:
  del header, about
  return {'use_sliding_window': False}


def _qwen3(header: Header, about: dict[str, Any]) -> dict[str, Any]:
  return _qwen2(header, about) | {'attention_bias': 'blk.0.attn_q.bias' in header.tensors}


def _gemma(header: Header, about: dict[str, Any]) -> dict[str, Any]:
  del header, about
  return {'hidden_act': 'gelu_pytorch_tanh', 'hidden_activation': 'gelu_pytorch_tanh'}


def _gemma2(header: Header, about: dict[str, Any]) -> dict[str, Any]:
  del header
  defaults = {'sliding_window': 4096, 'attn_logit_softcapping': 50.0,
              'final_logit_softcapping': 30.0}
  return {name: about.get(name, value) for name, value in defaults.items()} | {
    'hidden_activation': 'gelu_pytorch_tanh', 'query_pre_attn_scalar': _scalar(about, 46)}


def _gemma3(header: Header, about: dict[str, Any]) -> dict[str, Any]:
  local = header.checked.get('gemma3.rope.freq_base_swa', _THETA, 10_000.0)
  return {
    'hidden_activation': 'gelu_pytorch_tanh', 'query_pre_attn_scalar': _scalar(about, 62),
    'sliding_window': about.get('sliding_window'), 'rope_local_base_freq': local,
    'sliding_window_pattern': 6,
  }


def _scalar(about: dict[str, Any], layers_27b: int) -> int:
  """query_pre_attn_scalar: a head's width; of the 27 B models the stream's over the heads."""
  large = about['num_hidden_layers'] == layers_27b
  return about['hidden_size'] // about['num_attention_heads'] if large else about['head_dim']


def _gpt2(header: Header, about: dict[str, Any]) -> dict[str, Any]:
  del header, about
  return {'activation_function': 'gelu_new'}


ARCHITECTURES = {
  'llama': Architecture('llama', 'LlamaForCausalLM', _LLAMA, _llama),
  'qwen2': Architecture('qwen2', 'Qwen2ForCausalLM', _LLAMA, _qwen2),
  'qwen3': Architecture('qwen3', 'Qwen3ForCausalLM', _LLAMA, _qwen3),
  'gemma': Architecture('gemma', 'GemmaForCausalLM', _LLAMA, _gemma),
  'gemma2': Architecture('gemma2', 'Gemma2ForCausalLM', _GEMMA_2, _gemma2),
  'gemma3': Architecture('gemma3_text', 'Gemma3ForCausalLM', _GEMMA_2 | {
    'rope.freq_base_swa': ('rope_local_base_freq', _THETA)}, _gemma3),
  'gpt2': Architecture('gpt2', 'GPT2LMHeadModel', _GPT2, _gpt2),
}
"""By general.architecture."""


def architecture(header: Header) -> str:
  """What general.architecture says.

  Raises:
    Unsupported: one that is not known, one part of several, or no model.
  """
  fields = header.checked
  name = fields.need('general.architecture', TEXT)
  kind = fields.get('general.type', TEXT, 'model')
  if kind != 'model' or name not in ARCHITECTURES:
    raise Unsupported(
      f'expected a model of an architecture among {", ".join(ARCHITECTURES)} in {header.file}, '
      f'found {kind!r:.60} of {name!r:.60}; that is not supported, use a model of one of these')
  if fields.get('split.count', documents.whole(0), 0) > 1:
    raise Unsupported(
      f'expected a model in one file, found {header.file} to be a part of '
      f'{header.fields["split.count"]}; join them first (llama-gguf-split --merge)')
  return name


def config_json(header: Header) -> dict[str, Any]:
  """The config.json of the model in a file.

  Raises:
    Unsupported: an architecture, a field of it, or rotary positions that are not known, by name.
    CorruptTensors: a field that is missing, or of another type or size.
  """
  name = architecture(header)
  one, fields = ARCHITECTURES[name], header.checked
  about = {ours: fields.get(f'{name}.{theirs}', kind)
           for theirs, (ours, kind) in one.fields.items()}
  for theirs in _NEEDED:
    fields.need(f'{name}.{theirs}', one.fields[theirs][1])
  about = {ours: value for ours, value in about.items() if value is not None}
  if 'head_dim' in dict(one.fields.values()):
    whole = about['hidden_size'] // about['num_attention_heads']
    about.setdefault('head_dim', whole)
    about.setdefault('num_key_value_heads', about['num_attention_heads'])
  if (embedding := header.tensors.get('token_embd.weight')) is None:
    raise CorruptTensors(f'expected a tensor token_embd.weight in {header.file}, found none; fetch '
                         'the file again')
  _check_rest(header, name, one, about)
  return {
    'architectures': [one.name], 'model_type': one.model_type, 'vocab_size': embedding.shape[0],
    **about, **one.complete(header, about), **_rope(header, name, about),
    'tie_word_embeddings': 'output.weight' not in header.tensors, **special_ids(header),
  }


def special_ids(header: Header) -> dict[str, Any]:
  """bos, eos and pad ids as config.json holds them; eos are all that end a turn."""
  read = lambda name: header.checked.get(
    f'tokenizer.ggml.{name}_token_id', documents.whole(0, MOST['vocab_size']))
  stops = [i for i in dict.fromkeys(map(read, ('eos', 'eot', 'eom'))) if i is not None]
  ids = {'bos_token_id': read('bos'), 'eos_token_id': stops[0] if len(stops) == 1 else stops,
         'pad_token_id': read('padding')}
  return {name: value for name, value in ids.items() if value not in (None, [])}


def _check_rest(header: Header, name: str, one: Architecture, about: dict[str, Any]) -> None:
  """Refuses fields that nobody reads, and those of models that are not supported."""
  fields = header.checked
  known = {*one.fields, *_BESIDE}
  rest = [key for key in header.fields if key.startswith(f'{name}.')
          and key.removeprefix(f'{name}.') not in known
          and not key.startswith(f'{name}.rope.scal')]
  if rest:
    raise Unsupported(
      f'expected fields of {name} that are known in {header.file}, found {", ".join(rest)[:300]}; '
      'they may change the mathematics and are not supported, use a model without them')
  width = about.get('head_dim')
  wanted = {'expert_count': 0, 'attention.causal': True, 'rope.dimension_count': width,
            'attention.value_length': width}
  for key, value in wanted.items():
    found = header.fields.get(f'{name}.{key}', value)
    if value is not None and (found != value or isinstance(found, list)):
      raise Unsupported(
        f'expected {name}.{key} to be {value} in {header.file}, found {documents.shown(found)}; '
        'that is not supported, use a model without it')
  fields.get(f'{name}.vocab_size', documents.one_of(header.tensors['token_embd.weight'].shape[0]))


def _rope(header: Header, name: str, about: dict[str, Any]) -> dict[str, Any]:
  """rope_scaling, from the fields or from Llama 3's tensor of factors.

  Raises:
    Unsupported: another kind or option, by name.
  """
  start = f'{name}.rope.scaling.'
  rest = {key: value for key, value in header.fields.items()
          if key.startswith(f'{name}.rope.scal') and value not in (0, 0.0, '', False)}
  kind = header.checked.get(f'{start}type', TEXT, 'none')
  rest.pop(f'{start}type', None)
  rest.pop(f'{start}finetuned', None)  # whether it was trained so: of no effect
  options = {ours: rest.pop(f'{start}{theirs}') for theirs, ours in _SCALINGS.items()
             if f'{start}{theirs}' in rest}
  if rest or kind not in ('none', 'linear', 'yarn') or (kind == 'none' and options.get(
      'factor', 1.0) != 1.0):
    raise Unsupported(
      f'expected rotary positions of type none, linear or yarn in {header.file}, found {kind!r:.60}'
      f' with {sorted(rest) or options!r:.200}; that is not supported, use a model without it')
  if 'rope_freqs.weight' in header.tensors:
    return {'rope_scaling': _llama3(header, about)}
  return {'rope_scaling': {'rope_type': kind, **options}} if kind != 'none' else {}


def _llama3(header: Header, about: dict[str, Any]) -> dict[str, Any]:
  """The options of Llama 3's scaling, whose factors [K / 2] the file has; raises as `_rope`."""
  factors = read_place(header.file, 'rope_freqs.weight', header.tensors['rope_freqs.weight'])
  scaling = rope.Scaling('llama3', factor=float(np.max(factors, initial=1.0)), **_LLAMA_3)
  width, theta = about['head_dim'], about.get('rope_theta', 10_000.0)
  wanted = rope.frequencies(width, theta) / rope.frequencies(width, theta, scaling=scaling)
  if factors.shape != wanted.shape or not np.allclose(factors, wanted, rtol=1e-4):
    raise Unsupported(
      f'expected the rotary factors of Llama 3 in rope_freqs.weight of {header.file}, found others;'
      ' that is not supported, use a model without it')
  return {
    'rope_type': 'llama3', 'factor': scaling.factor, 'low_freq_factor': scaling.low_freq_factor,
    'high_freq_factor': scaling.high_freq_factor,
    'original_max_position_embeddings': scaling.original_positions,
  }
