"""What Gemma's own checkpoints call the parameters of our base tree, and how they lay them out.

The text model of Gemma 1, 2 and 3 (github.com/google-deepmind/gemma). Projections are einsum
weights with an axis of heads: queries [H, D, K], outputs [H, K, D], keys and values [2, G, D, K] in
one array, or all three [3, H, D, K]; gate and up are [2, D, F] or, in larger models, [2, F, D].
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from perl.hub import naming
from perl.hub.config_json import Unsupported
from perl.hub.naming import Tensor
from perl.hub.tensors import CorruptTensors
from perl.models import config as configs
from perl.models.config import Config

_EMBEDDING = 'embedder/input_embedding'
_GATING = 'layer_{}/mlp/gating_einsum'

_SOURCES = {  # our path -> (their array, our index into it)
  'embed/embedding': (_EMBEDDING, None),
  'final_norm/scale': ('final_norm/scale', None),
  **{f'{naming.BLOCK}{ours}': (f'layer_{{}}/{theirs}', index) for ours, theirs, index in (
    ('attn/q/kernel', 'attn/q_einsum', None),
    ('attn/k/kernel', 'attn/kv_einsum', 0),
    ('attn/v/kernel', 'attn/kv_einsum', 1),
    ('attn/o/kernel', 'attn/attn_vec_einsum', None),
    ('attn/q_norm/scale', 'attn/_query_norm/scale', None),
    ('attn/k_norm/scale', 'attn/_key_norm/scale', None),
    ('mlp/gate/kernel', 'mlp/gating_einsum', 0),
    ('mlp/up/kernel', 'mlp/gating_einsum', 1),
    ('mlp/down/kernel', 'mlp/linear', None),
    ('attn_norm/scale', 'pre_attention_norm/scale', None),
    ('attn_post_norm/scale', 'post_attention_norm/scale', None),
    ('mlp_norm/scale', 'pre_ffw_norm/scale', None),
    ('mlp_post_norm/scale', 'post_ffw_norm/scale', None),
  )},
}
_SOURCES_FUSED = _SOURCES | {
  f'{naming.BLOCK}attn/{name}/kernel': ('layer_{}/attn/qkv_einsum', i)
  for i, name in enumerate('qkv')}
_THEIRS = {theirs for theirs, _ in (*_SOURCES.values(), *_SOURCES_FUSED.values())}
_LAYER = re.compile(r'layer_(\d+)/')


class Leaf(NamedTuple):
  """A stored array: where it lies in the stored tree, and what it is."""

  keys: tuple[str, ...]
  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def bytes(self) -> int:
    """Its size."""
    return int(np.prod(self.shape)) * self.dtype.itemsize


class Part(NamedTuple):
  """One of our parameters: the array that holds it (one a layer), and the index into that."""

  tensor: Tensor
  index: int | None

  def matrix(self, x: np.ndarray) -> np.ndarray:
    """[I, O] ([O, I] where the tensor is 'transposed') or [O] of their array."""
    x = x if self.index is None else x[self.index]
    if self.tensor.theirs.endswith('attn_vec_einsum'):
      return x.reshape(-1, x.shape[-1])
    return x.swapaxes(0, 1).reshape(x.shape[1], -1) if x.ndim == 3 else x


def is_known(name: str) -> bool:
  """Whether 'layer_0/attn/q_einsum' is an array of the text model."""
  return _LAYER.sub('layer_{}/', name) in _THEIRS


def measure(leaves: dict[str, Leaf]) -> dict[str, int | bool]:
  """The fields of Config that the shapes say.

  Raises:
    CorruptTensors: an array that says one is missing or has another number of axes.
  """

  def dims(name: str, axes: int) -> tuple[int, ...]:
    shape = leaves[name].shape if name in leaves else None
    if shape is None or len(shape) != axes:
      raise CorruptTensors(
        f'expected an array {name} with {axes} axes, found '
        f'{"none of that name" if shape is None else list(shape)}; fetch the checkpoint again')
    return shape

  vocabulary, width = dims(_EMBEDDING, 2)
  heads, head_dim, _ = dims('layer_0/attn/attn_vec_einsum', 3)
  kv_heads = heads if _some(leaves, 'attn/qkv_einsum') else dims('layer_0/attn/kv_einsum', 4)[1]
  return {
    'vocab_size': vocabulary,
    'layers': 1 + max(int(m[1]) for m in map(_LAYER.match, leaves) if m),
    'width': width, 'heads': heads, 'kv_heads': kv_heads, 'head_dim': head_dim,
    'mlp_width': dims('layer_0/mlp/linear', 2)[0],
    'post_norm': _some(leaves, 'post_ffw_norm/scale'),
    'qk_norm': _some(leaves, 'attn/_query_norm/scale'),
  }


def _some(names: Iterable[str], end: str) -> bool:
  return any(name.endswith(f'/{end}') for name in names)


def published(shape: dict[str, int | bool]) -> Config:
  """The published Gemma of that shape, with the vocabulary of the checkpoint (often padded).

  Raises:
    Unsupported: there is none.
  """
  for size in configs.SIZES.values():
    options = {**size, 'vocab_size': shape['vocab_size']}
    alike = all(options.get(name, False) == value for name, value in shape.items())
    if alike and size.get('norm_offset'):
      return Config(**options)
  known = ', '.join(name for name, size in configs.SIZES.items() if size.get('norm_offset'))
  measured = ', '.join(f'{name} {value}' for name, value in shape.items())
  raise Unsupported(
    f'expected the shape of a published size ({known}), found {measured}; pass config= with these '
    'and with what shapes do not say (window, query_scale, ...)')


def check_config(config: Config, shape: dict[str, int | bool]) -> None:
  """Requires that a given config is the checkpoint's.

  Raises:
    CorruptTensors: names every field that differs.
  """
  fields = shape | {'norm_offset': True, 'gated': True}
  wanted = {name: getattr(config, name) for name in fields}
  if other := [f'{n} {wanted[n]} (found {fields[n]})' for n in fields if fields[n] != wanted[n]]:
    raise CorruptTensors(
      f'expected what config= says, found another shape: {", ".join(other)}; the config is of '
      'another model, or the checkpoint is not whole')


def parts(ours: Iterable[str], leaves: dict[str, Leaf], config: Config) -> list[Part]:
  """Where each of our parameters comes from, in their order, if all arrays have their shapes.

  Args:
    ours: the paths of the base tree.
    leaves: the checkpoint's.
    config: the model's.

  Raises:
    CorruptTensors: an array is missing or has another shape.
    Unsupported: there are other arrays or parameters.
  """
  sources = _SOURCES_FUSED if _some(leaves, 'attn/qkv_einsum') else _SOURCES
  if lacking := [path for path in ours if path not in sources]:
    raise Unsupported(
      f'expected a config with the parameters that Gemma has, found also {", ".join(lacking[:4])}; '
      'use a tied one without biases')
  turned = _is_turned(leaves, config)
  _check(leaves, {sources[path][0] for path in ours}, _shapes(config, turned), config.layers)
  result = []
  for path in ours:
    theirs, index = sources[path]
    form = 'transposed' if theirs == _GATING and turned else 'same'
    result.append(Part(Tensor(theirs, (path,), form), index))
  return result


def _is_turned(leaves: dict[str, Leaf], config: Config) -> bool:
  """Whether gate and up are stored as [F, D]."""
  if config.width == config.mlp_width:
    raise Unsupported(
      f'expected an MLP of another width than the model, found {config.width} for both; whether '
      'its gate is stored transposed cannot be told')
  first = leaves.get(_GATING.format(0))
  return first is not None and first.shape == (2, config.mlp_width, config.width)


def _shapes(config: Config, turned: bool) -> dict[str, tuple[int, ...]]:
  """Of each of their arrays (of one layer); norms of the stream are left out."""
  d, h, g = config.width, config.heads, config.kv_heads
  k, f = config.head_dim, config.mlp_width
  inner = {
    'attn/q_einsum': (h, d, k), 'attn/kv_einsum': (2, g, d, k), 'attn/qkv_einsum': (3, h, d, k),
    'attn/attn_vec_einsum': (h, k, d), 'mlp/linear': (f, d),
    'mlp/gating_einsum': (2, f, d) if turned else (2, d, f),
    'attn/_query_norm/scale': (k,), 'attn/_key_norm/scale': (k,),
  }
  by_layer = {f'layer_{{}}/{name}': shape for name, shape in inner.items()}
  return dict.fromkeys(_THEIRS, (d,)) | by_layer | {_EMBEDDING: (config.vocab_size, d)}


def _check(
  leaves: dict[str, Leaf], wanted: set[str], shapes: dict[str, tuple[int, ...]], layers: int
) -> None:
  names = {theirs.format(i): shapes[theirs] for theirs in sorted(wanted) for i in range(layers)}
  for name, shape in names.items():
    if name not in leaves or leaves[name].shape != shape:
      there = list(leaves[name].shape) if name in leaves else 'none of that name'
      raise CorruptTensors(
        f'expected {name} of shape {list(shape)}, found {there}; fetch the checkpoint again')
  if rest := sorted(set(leaves) - set(names)):
    raise Unsupported(
      f'expected only arrays that the model has, found also {", ".join(rest[:4])}; that '
      'architecture is not supported')
