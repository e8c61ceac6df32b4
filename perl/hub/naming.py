"""What published checkpoints call the parameters of our base tree, and how they lay them out.

Three conventions: Llama's (Mistral, Qwen and Gemma follow it), GPT-2's and GPT-NeoX's. The
structure of the tree tells which one a base is of.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 'layers/block/'
"""What the paths of the stacked parameters [L, ...] begin with."""


class Tensor(NamedTuple):
  """One published tensor, or one a layer.

  Attributes:
    theirs: its name; '{}' stands for the number of the layer.
    ours: the parameters that it holds: one, or queries, keys and values fused.
    form: 'same'; 'transposed', [O, I]; 'columns', [..., 3 O] side by side (GPT-2); 'heads',
      [H, 3, K, ...] (NeoX: the three of each head together, transposed).
  """

  theirs: str
  ours: tuple[str, ...]
  form: str

  @property
  def by_layer(self) -> bool:
    """Whether there is one a layer."""
    return '{}' in self.theirs

  def names(self, leaves: Mapping[str, Any]) -> list[str]:
    """Its name, or that of each layer, in a base with these leaves (`trees.flat`)."""
    if not self.by_layer:
      return [self.theirs]
    return [self.theirs.format(i) for i in range(leaves[self.ours[0]].shape[0])]

  def shape(self, leaves: Mapping[str, Any], heads: int) -> tuple[int, ...]:
    """The published shape, of one layer's."""
    skip = 1 if self.by_layer else 0
    parts = [jax.ShapeDtypeStruct(leaves[p].shape[skip:], jnp.float32) for p in self.ours]
    return jax.eval_shape(lambda *x: self.join(x, heads), *parts).shape

  def split(self, x: jax.Array, heads: int) -> tuple[jax.Array, ...]:
    """Our parameters of one layer, each [I, O] or [O], from the published tensor."""
    if self.form == 'same':
      return (x,)
    if self.form == 'transposed':
      return (x.T,)
    if self.form == 'columns':
      return tuple(jnp.split(x, 3, -1))
    parts = x.reshape(heads, 3, -1, *x.shape[1:])
    return tuple(parts[:, i].reshape(-1, *x.shape[1:]).T for i in range(3))

  def join(self, parts: tuple[jax.Array, ...], heads: int) -> jax.Array:
    """The inverse of `split`."""
    if self.form == 'same':
      return parts[0]
    if self.form == 'transposed':
      return parts[0].T
    if self.form == 'columns':
      return jnp.concatenate(parts, -1)
    stacked = jnp.stack([p.T.reshape(heads, -1, *p.T.shape[1:]) for p in parts], 1)
    return stacked.reshape(-1, *parts[0].T.shape[1:])


class Convention(NamedTuple):
  """How one line of models names its modules."""

  root: str  # of the model without its unembedding, 'model'
  layer: str  # of a layer under the root, 'layers.{}'
  outer: dict[str, str]  # our path -> tensor, outside of the layers
  modules: dict[str, str]  # our module in a block -> theirs
  fused: str = ''  # the form of the fused projection; '' where there is none
  matrix: str = 'transposed'  # the form of matrices
  unembedding: str = 'lm_head'  # outside of the root


_LLAMA = Convention(
  'model', 'layers.{}',
  {'embed/embedding': 'embed_tokens.weight', 'final_norm/scale': 'norm.weight'},
  {
    **{f'attn/{n}': f'self_attn.{n}_proj' for n in 'qkvo'},
    **{f'attn/{n}_norm': f'self_attn.{n}_norm' for n in 'qk'},
    **{f'mlp/{n}': f'mlp.{n}_proj' for n in ('gate', 'up', 'down')},
    'attn_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm',
  },
)
_GEMMA_2 = _LLAMA._replace(modules={
  **_LLAMA.modules, 'attn_post_norm': 'post_attention_layernorm',
  'mlp_norm': 'pre_feedforward_layernorm', 'mlp_post_norm': 'post_feedforward_layernorm',
})
_GPT2 = Convention(
  'transformer', 'h.{}',
  {'embed/embedding': 'wte.weight', 'embed/positions': 'wpe.weight',
   'final_norm/scale': 'ln_f.weight', 'final_norm/bias': 'ln_f.bias'},
  {
    **{f'attn/{n}': 'attn.c_attn' for n in 'qkv'}, 'attn/o': 'attn.c_proj',
    'mlp/up': 'mlp.c_fc', 'mlp/down': 'mlp.c_proj', 'attn_norm': 'ln_1', 'mlp_norm': 'ln_2',
  },
  'columns', 'same',
)
_NEOX = Convention(
  'gpt_neox', 'layers.{}',
  {'embed/embedding': 'embed_in.weight', 'final_norm/scale': 'final_layer_norm.weight',
   'final_norm/bias': 'final_layer_norm.bias'},
  {
    **{f'attn/{n}': 'attention.query_key_value' for n in 'qkv'}, 'attn/o': 'attention.dense',
    'mlp/up': 'mlp.dense_h_to_4h', 'mlp/down': 'mlp.dense_4h_to_h',
    'attn_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm',
  },
  'heads', unembedding='embed_out',
)
UNEMBEDDING = 'embed/lm_head'
"""Our module of untied output logits."""


def convention(paths: Iterable[str]) -> Convention:
  """The convention of a base with these parameters (`trees.flat(base)`)."""
  paths = set(paths)
  if 'embed/positions' in paths:
    return _GPT2
  if 'final_norm/bias' in paths:
    return _NEOX
  return _GEMMA_2 if f'{BLOCK}mlp_post_norm/scale' in paths else _LLAMA


def tensors(paths: Iterable[str]) -> list[Tensor]:
  """Every published tensor of a base with these parameters, each parameter in exactly one.

  Raises:
    ValueError: a parameter that the convention has no name for.
  """
  paths = list(paths)
  names, published = convention(paths), {}
  for path in paths:
    try:
      theirs, form = _name(path, names)
    except KeyError:
      raise ValueError(
        f'expected parameters that published models have, found {path!r}; such a base cannot be '
        'written as one, save it as an Orbax tree'
      ) from None
    published.setdefault((theirs, form), []).append(path)
  order = {'q': 0, 'k': 1, 'v': 2}
  fused = lambda path: order.get(path.split('/')[-2], 0)
  return [Tensor(theirs, tuple(sorted(ours, key=fused)), form)
          for (theirs, form), ours in published.items()]


def _name(path: str, names: Convention) -> tuple[str, str]:
  """(published name, form) of a parameter."""
  if path == f'{UNEMBEDDING}/kernel':
    return f'{names.unembedding}.weight', 'transposed'
  if path in names.outer:
    return f'{names.root}.{names.outer[path]}', 'same'
  inner, leaf = path.removeprefix(BLOCK).rsplit('/', 1)
  form = names.matrix if leaf == 'kernel' else 'same'
  if names.fused and inner in ('attn/q', 'attn/k', 'attn/v'):
    form = names.fused
  end = 'bias' if leaf == 'bias' else 'weight'
  return f'{names.root}.{names.layer}.{names.modules[inner]}.{end}', form
