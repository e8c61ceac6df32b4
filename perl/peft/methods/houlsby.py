"""Bottleneck adapters after attention and after the MLP (Houlsby et al., arXiv 1902.00751).

y + gelu(y W_down + b_down) W_up + b_up
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import struct

ATTENTION, MLP = 'layers/block/attn_adapter', 'layers/block/mlp_adapter'
_WRITERS = {ATTENTION: 'layers/block/attn/o/kernel', MLP: 'layers/block/mlp/down/kernel'}
"""Site -> the projection whose output it reads: its O columns are the residual stream's."""


class Bottleneck(struct.PyTreeNode):
  """A small MLP with a way around it, at a site of a layer."""

  down: jax.Array  # f32[..., D, m]
  down_bias: jax.Array  # f32[..., m]
  up: jax.Array  # f32[..., m, D], zero at init
  up_bias: jax.Array  # f32[..., D]

  def act(self, y: jax.Array) -> jax.Array:
    """f[..., D] of what a sublayer made, f[..., D]."""
    cast = lambda w: w.astype(y.dtype)
    inner = jax.nn.gelu(y @ cast(self.down) + cast(self.down_bias), approximate=False)
    return y + (inner @ cast(self.up) + cast(self.up_bias))


def places(leaves: Mapping[str, jax.Array], targets: Sequence[str]) -> dict[str, str]:
  """Both sites of a layer, whatever the targets."""
  del leaves, targets
  return dict(_WRITERS)


def init(key: jax.Array, weight: jax.Array, *, bottleneck: int = 64) -> Bottleneck:
  """W_down ~ U(-1/sqrt(D), 1/sqrt(D)), the rest 0: the base's function, exactly.

  (The paper draws W_up as well, close to 0.)

  Args:
    key: typed PRNG key.
    weight: f[..., I, D] of the projection before the site, or its shape.
    bottleneck: m (8, 64 and 256 in the paper).
  """
  *lead, _, width = weight.shape
  if bottleneck < 1:
    raise ValueError(
      f'expected a bottleneck of at least 1, found {bottleneck}; raise config.peft.bottleneck')
  zeros = lambda *shape: jnp.zeros((*lead, *shape), jnp.float32)
  bound = width**-0.5
  return Bottleneck(
    down=jax.random.uniform(key, (*lead, width, bottleneck), jnp.float32, -bound, bound),
    down_bias=zeros(bottleneck), up=zeros(bottleneck, width), up_bias=zeros(width))


def parameters(shape: tuple[int, ...], *, bottleneck: int = 64) -> int:
  """2 m D + D + m a site (section 2.1)."""
  *lead, _, width = shape
  return math.prod(lead) * (2 * bottleneck * width + width + bottleneck)
