"""Prefix tuning: learnt keys and values before every row, in each layer (Li and Liang, 2101.00190).

  head = softmax(q [P_K; K]^T) [P_V; V]

As in PEFT, keys are learnt as they are scored (no rotation), and rows begin at position P. With
`prefix_width` they are those of a small network, (P_K, P_V) = MLP(E), as the paper trains them.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import struct

from perl.types import Tree

IDENTITY = False
"""Every token sees the prefix, from the first step on."""

SITE = 'layers/block/attn/prefix'


class Prefix(struct.PyTreeNode):
  """Keys and values of P virtual tokens."""

  k: jax.Array  # f32[..., P, G K]
  v: jax.Array  # f32[..., P, G K]

  def keys_values(self, heads: int) -> tuple[jax.Array, jax.Array]:
    """Both, [..., P, G, K]."""
    cut = lambda x: x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
    return cut(self.k), cut(self.v)


class Reparametrised(struct.PyTreeNode):
  """(P_K, P_V) = tanh(E W_in + b_in) W_out + b_out, W_out a layer's own (section 4.3)."""

  e: jax.Array  # f32[P, D]
  w_in: jax.Array  # f32[D, m]
  b_in: jax.Array  # f32[m]
  w_out: jax.Array  # f32[L, m, 2 G K]
  b_out: jax.Array  # f32[L, 2 G K]

  def spread(self, base: Tree) -> dict[str, Prefix]:
    """{site: the prefix that it stands for}: what is left of it after training."""
    del base
    inner = jnp.tanh(self.e @ self.w_in + self.b_in)
    k, v = jnp.split(inner @ self.w_out + self.b_out[:, None], 2, -1)
    return {SITE: Prefix(k, v)}


def places(
  leaves: Mapping[str, jax.Array], targets: Sequence[str], *, prefix_width: int = 0
) -> dict[str, str]:
  """In attention, whatever the targets; the network, which makes all layers', at the root."""
  del leaves, targets
  return {'prefix' if prefix_width else SITE: 'layers/block/attn/k/kernel'}


def init(
  key: jax.Array, weight: jax.Array, *, virtual_tokens: int = 16, prefix_width: int = 0
) -> Prefix | Reparametrised:
  """Keys and values ~ N(0, 0.02^2): small, not the base's function.

  Args:
    key: typed PRNG key.
    weight: f[L, D, G K] of the key projection, or its shape.
    virtual_tokens: P.
    prefix_width: m, of the network that makes them; 0 trains them themselves.
  """
  layers, width, columns = weight.shape
  if virtual_tokens < 1:
    raise ValueError(f'expected at least 1 virtual token, found {virtual_tokens}; raise '
                     'config.peft.virtual_tokens')
  keys = jax.random.split(key, 3)
  normal = lambda i, shape, std: std * jax.random.normal(keys[i], shape, jnp.float32)
  if not prefix_width:
    shape = (layers, virtual_tokens, columns)
    return Prefix(normal(0, shape, 0.02), normal(1, shape, 0.02))
  return Reparametrised(
    e=normal(0, (virtual_tokens, width), 1.0), w_in=normal(1, (width, prefix_width), width**-0.5),
    b_in=jnp.zeros(prefix_width, jnp.float32),
    w_out=normal(2, (layers, prefix_width, 2 * columns), 0.02 * prefix_width**-0.5),
    b_out=jnp.zeros((layers, 2 * columns), jnp.float32))


def parameters(
  shape: tuple[int, ...], *, virtual_tokens: int = 16, prefix_width: int = 0
) -> int:
  """2 P L G K; with a network of width m, P D + D m + m + (m + 1) 2 L G K while it is trained."""
  layers, width, columns = shape
  if not prefix_width:
    return 2 * virtual_tokens * layers * columns
  return (virtual_tokens * width + width * prefix_width + prefix_width
          + (prefix_width + 1) * 2 * layers * columns)
