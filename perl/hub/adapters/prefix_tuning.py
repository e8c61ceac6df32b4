"""Prefix tuning: PEFT's PREFIX_TUNING, [P, 2 L G K]: layer by layer, keys before values.

With prefix_projection PEFT too writes what the network makes, not the network.
"""

import jax.numpy as jnp
import numpy as np

from perl import trees
from perl.hub.adapters import _virtual_tokens as virtual_tokens
from perl.hub.adapters._config import Saved, Written
from perl.hub.config_json import Unsupported
from perl.peft.methods.prefix import SITE, Prefix
from perl.types import Tree

NODES = (Prefix,)


def load(saved: Saved, base: Tree, heads: int) -> Tree:
  """The tree with a prefix in every layer."""
  del heads
  layers, columns = _shape(base)
  x = virtual_tokens.read(
    saved, 2 * layers * columns,
    ('prefix_projection', 'encoder_hidden_size', 'init_weights'))
  x = x.reshape(len(x), layers, 2, columns)
  k, v = (jnp.array(np.ascontiguousarray(x[:, :, i].swapaxes(0, 1))) for i in (0, 1))
  return trees.nest({SITE: Prefix(k, v)})


def save(nodes: dict[str, Prefix], base: Tree, heads: int) -> Written:
  """Fields and tensors of the prefix.

  Raises:
    Unsupported: it is of some layers alone.
  """
  (node,) = nodes.values()
  layers, columns = _shape(base)
  if len(node.k) != layers:
    raise Unsupported(
      f'expected a prefix of all {layers} layers, as PEFT\'s format has it, found one of the last '
      f'{len(node.k)}; train it with peft.top_layers=0')
  x = np.stack([np.asarray(node.k), np.asarray(node.v)], 1)  # [L, 2, P, G K]
  width = trees.flat(base)['layers/block/attn/q/kernel'].shape[-1] // heads if heads else 0
  return {
    'peft_type': 'PREFIX_TUNING', 'num_virtual_tokens': x.shape[2], 'num_layers': layers,
    'token_dim': columns, 'num_transformer_submodules': 1, 'prefix_projection': False,
    'num_attention_heads': columns // width if width else None,  # PEFT then asks the base
  }, {virtual_tokens.NAME: x.transpose(2, 0, 1, 3).reshape(x.shape[2], -1)}


def _shape(base: Tree) -> tuple[int, int]:
  """(L, G K)."""
  layers, _, columns = trees.flat(base)['layers/block/attn/k/kernel'].shape
  return layers, columns
