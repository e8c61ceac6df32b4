"""Decoding with a cache: one prefill of the prompts, then a token at a time.

The layers' weights are taken out of their stacks once, before the loop: an index into [L, ...]
arrays inside a decode loop copies a layer's weights for every token.
"""

import jax
import jax.numpy as jnp
from flax import struct

from perl import masked, trees
from perl.models import lm
from perl.models.transformer import KV, Block, Transformer, layers_of
from perl.types import Tree


class Parts(struct.PyTreeNode):
  """Base and adapter, by layer."""

  whole: Tree  # the collections, for embedding, last norm and unembedding
  layers: list[Tree]  # L times the collections of one Block


class Cache(struct.PyTreeNode):
  """Keys and values of every layer; slots that hold nothing yet are hidden by the mask."""

  kv: list[KV]  # L times (f[B, S, G, K], f[B, S, G, K])


def parts(model: Transformer, base: Tree, adapter: Tree) -> Parts:
  """Base and adapter, unstacked; call it outside of the loop."""
  whole = lm.variables(base, adapter)
  blocks = {
    name: tree['layers']['block'] for name, tree in whole.items() if 'layers' in tree
  }
  layers = trees.unstack(blocks)
  rest = {name: {k: v for k, v in t.items() if k != 'layers'} for name, t in whole.items()}
  return Parts(rest, layers)


def prefill(
  model: Transformer, parts: Parts, tokens: jax.Array, mask: jax.Array, slots: int
) -> tuple[jax.Array, Cache]:
  """Logits f32[B, V] after the prompts, and a cache of `slots` slots that holds them.

  Args:
    model, parts: see `parts`.
    tokens: i32[B, P], left-padded, so that every row's next slot is P.
    mask: bool[B, P].
    slots: S, prompt and response.

  Raises:
    ValueError: more slots than the model has learnt positions.
  """
  if model.config.position == 'learnt' and slots > model.config.max_positions:
    raise ValueError(
      f'expected at most {model.config.max_positions} tokens of prompt and response, for which '
      f'this model has learnt positions, found {slots}; lower rl.max_new_tokens or the prompts'
    )
  positions = masked.positions(mask)
  x = model.apply(parts.whole, tokens, positions, method='embed_tokens')
  block, kv = Block(model.config), []
  room = ((0, 0), (0, slots - tokens.shape[1]), (0, 0), (0, 0))
  for weights, layer in zip(parts.layers, layers_of(model.config)):
    x, (k, v) = block.apply(weights, x, positions, mask, layer)
    kv.append((jnp.pad(k, room), jnp.pad(v, room)))
  return _logits(model, parts, x[:, -1]), Cache(kv)


def step(
  model: Transformer,
  parts: Parts,
  cache: Cache,
  token: jax.Array,
  mask: jax.Array,
  index: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Logits f32[B, V] after one more token, and the cache with it.

  Args:
    model, parts, cache: see `parts` and `prefill`.
    token: i32[B].
    mask: bool[B, S], the real tokens up to and with this one.
    index: i32[], this token's slot.
  """
  positions = (mask.sum(-1, dtype=jnp.int32) - 1)[:, None]
  x = model.apply(parts.whole, token[:, None], positions, method='embed_tokens')
  block, kv = Block(model.config), []
  for weights, layer, old in zip(parts.layers, layers_of(model.config), cache.kv):
    x, new = block.apply(weights, x, positions, mask, layer, old, index)
    kv.append(new)
  return _logits(model, parts, x[:, 0]), Cache(kv)


def _logits(model: Transformer, parts: Parts, x: jax.Array) -> jax.Array:
  h = model.apply(parts.whole, x, method='normalise')
  return model.apply(parts.whole, h, method='unembed')
