"""Virtual tokens: keys and values that lead every row, learnt as such or made of a soft prompt.

What comes first in a causal model depends on nothing that follows. So a soft prompt passes through
the layers once, whatever the batch, and is from then on a prefix: keys and values [P, G, K] a layer
that every token sees, at positions 0 to P - 1. The rows keep their shapes, and begin at position P.
A layer's window does not hide them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from perl.models import top_layers
from perl.models.block import Block, layers_of
from perl.models.config import Config
from perl.models.context import KV, Rows
from perl.types import Tree

SITE = ('attn', 'prefix')
"""Where a Block finds its virtual tokens."""


class Lead(struct.PyTreeNode):
  """Keys and values of virtual tokens, as `Attention` asks for them."""

  k: jax.Array  # f[..., P, G, K]
  v: jax.Array  # f[..., P, G, K]

  def keys_values(self, heads: int) -> KV:
    """Both, [..., P, G, K]."""
    del heads
    return self.k, self.v


def length(adapter: Tree | None) -> int:
  """P: how many virtual tokens lead, of the adapters of one Block."""
  node = (adapter or {}).get(SITE[0], {}).get(SITE[1])
  return 0 if node is None else node.keys_values(1)[0].shape[-3]


def unembedding_is_frozen(adapter: Tree) -> bool:
  """Whether no adapter lies beside embeddings or unembedding; a soft prompt is none."""
  return not set(adapter.get('embed', ())) - {'prompt'}


def of_prompt(config: Config, blocks: dict[str, Tree], x: jax.Array) -> Lead:
  """The keys and values [L, P, G, K] of embeddings f[P, D], which follow what leads already.

  Args:
    config: the model's.
    blocks: {'params': ..., 'adapter': ...} of one Block, stacked.
    x: the soft prompt as the first layer reads it.
  """
  block = Block(config, parent=None)
  context = Rows(jnp.ones((1, len(x)), bool), right_padded=True)
  positions = jnp.arange(len(x))[None] + length(blocks.get('adapter'))
  x, layers = x[None], []
  for i, layer in enumerate(layers_of(config)):
    apply = lambda x, weights, layer=layer: block.apply(weights, x, positions, context, layer)
    x, kept = jax.checkpoint(apply)(x, top_layers.layer(blocks, i, config.layers))
    layers.append(kept)
  return Lead(*(jnp.stack([y[0] for y in side]) for side in zip(*layers)))


def lay(adapter: Tree | None, lead: Lead, heads: int) -> Tree:
  """The adapters of one Block with more virtual tokens, after those that lead already."""
  adapter = dict(adapter or {})
  attn = dict(adapter.get(SITE[0], {}))
  before: Any = attn.get(SITE[1])
  if before is not None:
    if (layers := before.keys_values(heads)[0].shape[0]) != (all_of_them := lead.k.shape[0]):
      raise ValueError(
        f'expected a prefix of all {all_of_them} layers below a soft prompt, found one of '
        f'{layers}; set peft.top_layers=0')
    pairs = zip(before.keys_values(heads), (lead.k, lead.v))
    lead = Lead(*(jnp.concatenate([a.astype(b.dtype), b], -3) for a, b in pairs))
  attn[SITE[1]] = lead
  return {**adapter, SITE[0]: attn}
