"""Tensors of a GGUF file under their published names, in the published layout, one at a time.

What llama.cpp's converter does to them is undone: it names them anew, reorders the rows of Llama's
queries and keys for its own rotary positions, adds one to Gemma's norms, and transposes GPT-2's
matrices. Blocks of few bits become float32.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from perl.hub import gguf_header, tensors
from perl.hub.config_json import Unsupported
from perl.hub.gguf_header import Header, Place
from perl.hub.tensors import DTYPES, CorruptTensors

_LLAMA = {
  'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head',
  'attn_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm',
  **{f'attn_{n}': f'self_attn.{n}_proj' for n in 'qkv'}, 'attn_output': 'self_attn.o_proj',
  **{f'attn_{n}_norm': f'self_attn.{n}_norm' for n in 'qk'},
  **{f'ffn_{n}': f'mlp.{n}_proj' for n in ('gate', 'up', 'down')},
}
_GEMMA_2 = _LLAMA | {
  'post_attention_norm': 'post_attention_layernorm', 'ffn_norm': 'pre_feedforward_layernorm',
  'post_ffw_norm': 'post_feedforward_layernorm',
}
_GPT2 = {
  'token_embd': 'transformer.wte', 'position_embd': 'transformer.wpe', 'output': 'lm_head',
  'output_norm': 'transformer.ln_f', 'attn_norm': 'ln_1', 'attn_qkv': 'attn.c_attn',
  'attn_output': 'attn.c_proj', 'ffn_norm': 'ln_2', 'ffn_up': 'mlp.c_fc', 'ffn_down': 'mlp.c_proj',
}
_NAMES = {'gemma2': _GEMMA_2, 'gemma3': _GEMMA_2, 'gpt2': _GPT2}
_LAYER = {'gpt2': 'transformer.h'}
_NAME = re.compile(r'(?:blk\.([0-9]{1,5})\.)?([a-z_]+)\.(weight|bias)')
_PLAIN = ('F32', 'F16', 'BF16')


class Entry(NamedTuple):
  """A tensor as `tensors.Entry` has it: where it lies, and what it will be."""

  file: epath.Path
  place: Place
  turn: str  # 'same', 'rows' (of a head's two halves), 'less one', 'transposed'
  heads: int = 1  # of 'rows'

  @property
  def dtype(self) -> str:
    """The code of safetensors: of blocks, and of what is computed, float32's."""
    return self.place.kind if self.place.kind in _PLAIN and self.turn != 'less one' else 'F32'

  @property
  def shape(self) -> tuple[int, ...]:
    """The published shape."""
    return self.place.shape[::-1] if self.turn == 'transposed' else self.place.shape

  @property
  def bytes(self) -> int:
    """Of the array that `read` gives."""
    return int(np.prod(self.shape)) * DTYPES[self.dtype].itemsize

  def read(self, name: str) -> np.ndarray:
    """The tensor.

    Raises:
      CorruptTensors: the file was cut meanwhile.
    """
    x = read_place(self.file, name, self.place)
    if self.turn == 'less one':
      return x.astype(np.float32) - np.float32(1)
    if self.turn == 'rows':
      return unturned(x, self.heads)
    return np.ascontiguousarray(x.T) if self.turn == 'transposed' else x

  def chunks(self, name: str) -> Iterator[memoryview]:
    """The bytes of the tensor."""
    yield memoryview(np.ascontiguousarray(self.read(name)).reshape(-1).view(np.uint8))


def entries(header: Header, architecture: str, about: Mapping[str, Any]) -> dict[str, Entry]:
  """{published name: its entry} of all tensors of a file.

  Args:
    header: the file's.
    architecture: of gguf_config.ARCHITECTURES.
    about: its config.json.

  Raises:
    Unsupported: a tensor that is not known, by name.
  """
  names, root = _NAMES.get(architecture, _LLAMA), _LAYER.get(architecture, 'model.layers')
  result = {}
  for theirs, place in header.tensors.items():
    if theirs == 'rope_freqs.weight':
      continue  # gguf_config reads it
    match = _NAME.fullmatch(theirs)
    if match is None or match[2] not in names:
      raise Unsupported(
        f'expected tensors that {architecture} has in {header.file}, found also {theirs:.60}; that '
        'is not supported, use a model without it')
    layer, module, end = match.groups()
    start = '' if layer is None else f'{root}.{int(layer)}.'
    turn, heads = _turn(architecture, module, end, place, about)
    result[f'{start}{names[module]}.{end}'] = Entry(header.file, place, turn, heads)
  return result


def _turn(
  architecture: str, module: str, end: str, place: Place, about: Mapping[str, Any]
) -> tuple[str, int]:
  if architecture == 'llama' and module in ('attn_q', 'attn_k'):
    heads = about['num_attention_heads' if module == 'attn_q' else 'num_key_value_heads']
    if place.shape[0] % (2 * heads):
      raise CorruptTensors(
        f'expected {module} with rows for {heads} heads of an even width, found {place.shape[0]}; '
        'fetch the file again')
    return 'rows', heads
  if architecture.startswith('gemma') and module.endswith('norm'):
    return 'less one', 1
  turned = architecture == 'gpt2' and module.startswith(('attn_', 'ffn_')) and len(place.shape) == 2
  return 'transposed' if turned and end == 'weight' else 'same', 1


def unturned(x: np.ndarray, heads: int) -> np.ndarray:
  """Rows [H, K / 2, 2] in the published order [H, 2, K / 2]: entry i turns with entry i + K / 2."""
  pairs = x.reshape(heads, x.shape[0] // heads // 2, 2, *x.shape[1:])
  return pairs.swapaxes(1, 2).reshape(x.shape)


def read_bytes(file: epath.Path, name: str, place: Place) -> np.ndarray:
  """u8[rows, bytes of a row].

  Raises:
    CorruptTensors: the file was cut meanwhile.
  """
  content = tensors.read_bytes(file, name, place.start, place.stop, gguf_header.REMEDY)
  return content.reshape(int(np.prod(place.shape[:-1])), -1)


def read_place(file: epath.Path, name: str, place: Place) -> np.ndarray:
  """The numbers of a tensor as it lies, blocks as float32; raises as `read_bytes`."""
  content = read_bytes(file, name, place)
  if place.kind in _PLAIN:
    return content.view(DTYPES[place.kind]).reshape(place.shape)
  library = gguf_header.library()
  return library.dequantize(content, library.GGMLQuantizationType[place.kind]).reshape(place.shape)
