"""The shape of a decoder-only transformer: one class of options, and sizes by name."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from perl.choices import nearest
from perl.models.rope import Scaling

_LIKE_LLAMA_3 = dict(rope_theta=500_000.0, norm_eps=1e-5, vocab_size=128_256)
_LLAMA_3_1 = Scaling('llama3', 8.0, 8192)
_LLAMA_3_2 = Scaling('llama3', 32.0, 8192)
_LIKE_GEMMA = dict(
  norm_offset=True, norm_eps=1e-6, activation='gelu_tanh', embed_scale=True, vocab_size=256_000,
  max_positions=8192)
_LIKE_GEMMA_2 = dict(
  **_LIKE_GEMMA, post_norm=True, attention_softcap=50.0, final_softcap=30.0, window=4096,
  query_scale=256**-0.5)


def _gemma_3(layers: int, *, large: bool = True, **shape: Any) -> dict[str, Any]:
  """Every sixth layer sees all. The large ones stretch its positions for a longer context."""
  size = dict(window=1024, max_positions=131_072, rope_scaling=Scaling('linear', 8.0)) if large \
    else dict(window=512, max_positions=32_768)
  own = dict(
    layers=layers, window_layers=tuple((i + 1) % 6 > 0 for i in range(layers)), post_norm=True,
    qk_norm=True, query_scale=256**-0.5, rope_theta=1e6, rope_local_theta=1e4, vocab_size=262_144)
  return {**_LIKE_GEMMA, **own, **size, **shape}


SIZES: dict[str, dict] = {
  # Ours; the vocabulary is the tokenizer's. Counts are with a vocabulary of 1,024 (small: 16,384).
  'nano': dict(layers=2, width=64, heads=2, kv_heads=2, head_dim=32, mlp_width=192),  # 0.17 M
  'micro': dict(layers=3, width=96, heads=4, kv_heads=4, head_dim=24, mlp_width=256),  # 0.43 M
  'tiny': dict(layers=4, width=128, heads=4, kv_heads=4, head_dim=32, mlp_width=384),  # 0.98 M
  'mini': dict(layers=8, width=320, heads=5, kv_heads=5, head_dim=64, mlp_width=864),  # 10.2 M
  'medium': dict(layers=8, width=512, heads=8, kv_heads=8, head_dim=64, mlp_width=1152),  # 22.6 M
  'small': dict(layers=12, width=768, heads=12, kv_heads=12, head_dim=64, mlp_width=2048),  # 97.5 M
  # Published. Each is the config.json of the release of that name.
  'llama-3.2-1b': dict(
    layers=16, width=2048, heads=32, kv_heads=8, head_dim=64, mlp_width=8192,
    rope_scaling=_LLAMA_3_2, **_LIKE_LLAMA_3
  ),
  'llama-3.2-3b': dict(
    layers=28, width=3072, heads=24, kv_heads=8, head_dim=128, mlp_width=8192,
    rope_scaling=_LLAMA_3_2, **_LIKE_LLAMA_3
  ),
  'llama-3.1-8b': dict(
    layers=32, width=4096, heads=32, kv_heads=8, head_dim=128, mlp_width=14336, tied=False,
    rope_scaling=_LLAMA_3_1, **_LIKE_LLAMA_3
  ),
  'llama-2-7b': dict(
    layers=32, width=4096, heads=32, kv_heads=32, head_dim=128, mlp_width=11008, tied=False,
    norm_eps=1e-5, vocab_size=32_000
  ),
  'mistral-7b': dict(
    layers=32, width=4096, heads=32, kv_heads=8, head_dim=128, mlp_width=14336, tied=False,
    norm_eps=1e-5, window=4096, vocab_size=32_000
  ),
  'qwen2.5-1.5b': dict(
    layers=28, width=1536, heads=12, kv_heads=2, head_dim=128, mlp_width=8960, qkv_bias=True,
    rope_theta=1e6, norm_eps=1e-6, vocab_size=151_936
  ),
  'qwen3-0.6b': dict(
    layers=28, width=1024, heads=16, kv_heads=8, head_dim=128, mlp_width=3072, qk_norm=True,
    rope_theta=1e6, norm_eps=1e-6, vocab_size=151_936
  ),
  'gemma-2b': dict(
    layers=18, width=2048, heads=8, kv_heads=1, head_dim=256, mlp_width=16384, **_LIKE_GEMMA
  ),
  'gemma-7b': dict(
    layers=28, width=3072, heads=16, kv_heads=16, head_dim=256, mlp_width=24576, **_LIKE_GEMMA
  ),
  'gemma-2-2b': dict(
    layers=26, width=2304, heads=8, kv_heads=4, head_dim=256, mlp_width=9216,
    window_layers=(True, False) * 13, **_LIKE_GEMMA_2
  ),
  'gemma-2-9b': dict(
    layers=42, width=3584, heads=16, kv_heads=8, head_dim=256, mlp_width=14336,
    window_layers=(True, False) * 21, **_LIKE_GEMMA_2
  ),
  'gemma-2-27b': dict(
    layers=46, width=4608, heads=32, kv_heads=16, head_dim=128, mlp_width=36864,
    window_layers=(True, False) * 23, **{**_LIKE_GEMMA_2, 'query_scale': 144**-0.5}
  ),
  'gemma-3-270m': _gemma_3(
    18, large=False, width=640, heads=4, kv_heads=1, head_dim=256, mlp_width=2048
  ),
  'gemma-3-1b': _gemma_3(
    26, large=False, width=1152, heads=4, kv_heads=1, head_dim=256, mlp_width=6912
  ),
  'gemma-3-4b': _gemma_3(34, width=2560, heads=8, kv_heads=4, head_dim=256, mlp_width=10240),
  'gemma-3-12b': _gemma_3(48, width=3840, heads=16, kv_heads=8, head_dim=256, mlp_width=15360),
  'gemma-3-27b': _gemma_3(
    62, width=5376, heads=32, kv_heads=16, head_dim=128, mlp_width=21504, query_scale=168**-0.5
  ),
}


@dataclasses.dataclass(frozen=True)
class Config:
  """The options of `Transformer`. The defaults are Llama's; a family is a set of options.

  Published families as options: Mistral (window), Qwen2 (qkv_bias), Qwen3 (qk_norm), Gemma 1
  (norm_offset, gelu_tanh, embed_scale), Gemma 2 (and post_norm, softcaps, window_layers), Gemma 3
  (post_norm, qk_norm, window_layers, rope_local_theta), GPT-2 (norm 'layer', position 'learnt', not
  gated, biases), GPT-NeoX (norm 'layer', parallel, rope_fraction, not gated, biases).
  """

  vocab_size: int
  layers: int  # L
  width: int  # D, the residual stream's
  heads: int  # H, of queries
  kv_heads: int  # G, of keys and values; G divides H
  head_dim: int  # K
  mlp_width: int
  tied: bool = True  # the unembedding is the embedding, transposed
  norm: str = 'rms'  # 'rms' | 'layer' (with bias)
  norm_eps: float = 1e-6
  norm_offset: bool = False  # the scale is stored as its distance from one (Gemma)
  post_norm: bool = False  # a norm after each sublayer too (Gemma 2)
  qk_norm: bool = False  # RMSNorm of each query and key head (Qwen3)
  activation: str = 'silu'  # 'silu' | 'gelu' (exact) | 'gelu_tanh' | 'relu'
  gated: bool = True  # act(x W_gate) * (x W_up), else act(x W_up)
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  position: str = 'rope'  # 'rope' | 'learnt'
  rope_theta: float = 10_000.0
  rope_fraction: float = 1.0  # of the head's width that rotates (NeoX: 0.25)
  rope_scaling: Scaling | None = None  # for contexts longer than the first training's
  rope_local_theta: float | None = None  # of layers with a window, unscaled (Gemma 3); None: as all
  max_positions: int = 2048  # longest context, tokens; with learnt positions, their rows
  parallel: bool = False  # attention and MLP read the same input (NeoX)
  embed_scale: bool = False  # embeddings times sqrt(D) (Gemma)
  query_scale: float | None = None  # of q k^T; None: 1 / sqrt(K)
  window: int | None = None  # each token sees itself and the window - 1 before it; None: all
  window_layers: tuple[bool, ...] = ()  # which of the L layers have the window; (): all
  attention_softcap: float | None = None  # c tanh(x / c) of the attention logits (Gemma 2)
  final_softcap: float | None = None  # the same of the output logits
  dtype: str = 'float32'  # of the computation; softmax, norms and log-probs are float32 always
  param_dtype: str = 'float32'  # of the stored base
  remat: str = 'none'  # what the backward pass of a layer computes again: see REMAT
  scan_unroll: int = 0  # layers unrolled per iteration of the loop over layers; 0: the platform's

  def __post_init__(self):
    for field in dataclasses.fields(self):
      _check_kind(field, getattr(self, field.name))
    if self.heads % self.kv_heads:
      raise ValueError(
        f'expected kv_heads to divide heads, found {self.kv_heads} and {self.heads}; change either')
    rotating = int(self.head_dim * self.rope_fraction) if self.position == 'rope' else 0
    if not 0 <= rotating + rotating % 2 <= self.head_dim:  # in pairs
      raise ValueError(
        f'expected rope_fraction of head_dim to rotate in pairs, found {self.rope_fraction:g} of '
        f'{self.head_dim}; change either')
    if self.window_layers and (self.window is None or len(self.window_layers) != self.layers):
      raise ValueError(
        f'expected window_layers of {self.layers} layers and a window, found '
        f'{len(self.window_layers)} and {self.window}; change either')
    choices = dict(
      norm=('rms', 'layer'), activation=('silu', 'gelu', 'gelu_tanh', 'relu'),
      position=('rope', 'learnt'), remat=REMAT,
    )
    for field, allowed in choices.items():
      if getattr(self, field) not in allowed:
        raise ValueError(
          f'expected {field} to be one of {allowed}, found {getattr(self, field)!r}; choose one')
    for field in ('dtype', 'param_dtype'):
      _check_dtype(field, getattr(self, field))

  @property
  def windows(self) -> tuple[int | None, ...]:
    """The window of each layer, in tokens; None where it sees all."""
    return tuple(
      self.window if has else None for has in self.window_layers or (True,) * self.layers)


MOST = {
  'vocab_size': 2**24, 'layers': 2**12, 'width': 2**20, 'heads': 2**16, 'kv_heads': 2**16,
  'head_dim': 2**16, 'mlp_width': 2**22, 'max_positions': 2**31 - 1, 'window': 2**31 - 1,
  'scan_unroll': 2**12,
}
"""The largest sizes: ten times those of any release, and less than what would fill a memory."""


def _check_kind(field: dataclasses.Field, value: Any) -> None:
  """Raises ValueError for a field of another type, or a size that none can have."""
  name, low = field.name, 0 if field.name == 'scan_unroll' else 1
  if value is None and 'None' in str(field.type):
    return
  if name in MOST:
    fits, expected = type(value) is int and low <= value <= MOST[name], (
      f'a whole number from {low} to {MOST[name]:,}')
  elif field.type in (bool, str):
    fits, expected = type(value) is field.type, f'of type {field.type.__name__}'
  elif name == 'window_layers':
    fits, expected = isinstance(value, tuple) and all(type(x) is bool for x in value), (
      'true or false, a layer')
  elif name == 'rope_scaling':
    fits, expected = isinstance(value, Scaling), 'a scaling of rotary positions'
  else:
    fits, expected = isinstance(value, (int, float)) and math.isfinite(value), 'a finite number'
  if not fits:
    raise ValueError(f'expected {name} to be {expected}, found {value!r:.60}; change it')


def _check_dtype(name: str, value: str) -> None:
  try:
    jnp.dtype(value)
  except TypeError:
    raise ValueError(f'expected {name} to be a dtype of numbers, found {value!r:.60}; write for '
                     'example bfloat16') from None


REMAT = ('none', 'products', 'attention', 'layer')
"""What is kept of a layer for its backward pass, from most to least: all of it; the results of its
products and of attention (norms, rotations and activations are computed again, which costs little);
these without the MLP's wide ones; its input alone."""

RUN_FIELDS = ('dtype', 'param_dtype', 'remat', 'scan_unroll')
"""The fields that say how a model is run; the others say what it is."""


def differences(one: Config, other: Config) -> list[str]:
  """What two models differ in: 'field: value, value', run fields aside."""
  pairs = {
    f.name: (getattr(one, f.name), getattr(other, f.name))
    for f in dataclasses.fields(Config) if f.name not in RUN_FIELDS}
  return [f'{name}: {a!r}, {b!r}' for name, (a, b) in pairs.items() if a != b]


def replace(config: Config, **options: Any) -> Config:
  """The config with these options; None leaves one as it is."""
  return dataclasses.replace(config, **{n: v for n, v in options.items() if v is not None})


def from_dict(fields: dict) -> Config:
  """The inverse of dataclasses.asdict, also after a way through JSON.

  Raises:
    ValueError: a field that Config lacks, or that is missing.
  """
  known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(Config)}
  lacking = [name for name, needed in known.items() if needed and name not in fields]
  if unknown := sorted(set(fields) - known.keys()) + lacking:
    raise ValueError(
      f'expected the fields of perl.models.config.Config, found {"no" if lacking else ""} '
      f'{unknown[0]!r}; the file is of another version')
  options = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
  if isinstance(options.get('remat'), bool):  # as files of older versions have it
    options['remat'] = 'layer' if options['remat'] else 'none'
  if options.get('rope_scaling'):
    options['rope_scaling'] = Scaling(**options['rope_scaling'])
  return Config(**options)


def sized(size: str, *, vocab_size: int | None = None, **overrides) -> Config:
  """The config of a named size.

  Args:
    size: a key of SIZES.
    vocab_size: V; needed by our own sizes, whose vocabulary is the tokenizer's. A published size
      keeps its own if the given one is not larger.
    **overrides: any field of Config.

  Raises:
    ValueError: an unknown size (the nearest is suggested), or a vocabulary that does not fit.
  """
  if size not in SIZES:
    raise ValueError(
      f'expected a size among {sorted(SIZES)}, found {size!r}{nearest(size, SIZES)}')
  options = dict(SIZES[size])
  own = options.pop('vocab_size', None)
  if own is None and vocab_size is None:
    raise ValueError(f'size {size!r} takes its vocabulary from the tokenizer: pass vocab_size')
  if own is not None and vocab_size is not None and vocab_size > own:
    raise ValueError(
      f'expected a tokenizer of at most {own} tokens for {size!r}, found {vocab_size}; '
      'use the tokenizer that was published with the model')
  return Config(**{**options, 'vocab_size': own or vocab_size, **overrides})
