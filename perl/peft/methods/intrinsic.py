"""Intrinsic dimension: all matrices moved by one vector (Li et al., 1804.08838; Aghajanyan et al.,
2012.13255).

  theta = theta_0 + P z,   z in R^d,   P = [V_1; V_2; ...],   V_i = H G_i Pi_i H B_i / (d' c_i)

P is Fastfood's (Le et al., arXiv 1408.3060): H a Walsh-Hadamard transform of d' = 2^k >= d, B
signs, Pi a permutation, G normal. It is drawn from a seed where it is needed, and stored nowhere.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from perl import trees
from perl.peft.protocol import Additive, kernels
from perl.types import Tree


class Moved(Additive, struct.PyTreeNode):
  """y = x (W + delta): what the vector makes of one matrix."""

  LINEAR: ClassVar[dict[str, float | None]] = {'delta': 0.0}

  delta: jax.Array  # f32[..., I, O]

  def project(self, x: jax.Array, w: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """f[..., O] of x f[..., I] and w f[I, O]."""
    del key
    return x @ w + x @ self.delta.astype(x.dtype)

  def change(self, w: jax.Array) -> jax.Array:
    """delta."""
    return self.delta


class Intrinsic(struct.PyTreeNode):
  """The vector, at the adapter's root."""

  LINEAR: ClassVar[dict[str, float | None]] = {'z': 0.0}

  z: jax.Array  # f32[d], zero at init
  projection_seed: int = struct.field(pytree_node=False, default=0)
  targets: tuple[str, ...] = struct.field(pytree_node=False, default=())  # patterns
  top_layers: int = struct.field(pytree_node=False, default=0)  # the last so many; 0: all

  def spread(self, base: Tree) -> dict[str, Moved]:
    """{path of a kernel: its `Moved`}; only shapes of the base are read."""
    leaves = trees.flat(base)
    key = jax.random.key(self.projection_seed)
    nodes = {}
    for i, name in enumerate(kernels(leaves, self.targets)):
      shape = leaves[name].shape
      if self.top_layers and name.startswith('layers/'):
        shape = (self.top_layers, *shape[1:])
      nodes[name] = Moved(project(jax.random.fold_in(key, i), self.z, shape))
    return nodes


def project(key: jax.Array, z: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """P z f32[shape] for z f32[d]; each entry of P has mean 0 and variance 1 / prod(shape).

  So |P z| is about |z|, as the paper normalises P.
  """
  size, width = int(np.prod(shape)), max(2, 1 << (len(z) - 1).bit_length())
  blocks = -(-size // width)
  padded = jnp.pad(z, (0, width - len(z)))

  def block(key):
    signs, order, scales = jax.random.split(key, 3)
    x = hadamard(jnp.where(jax.random.bernoulli(signs, 0.5, (width,)), padded, -padded))
    x = jnp.take(x, jax.random.permutation(order, width))
    return hadamard(jax.random.normal(scales, (width,), z.dtype) * x)

  out = jax.vmap(block)(jax.random.split(key, blocks)).reshape(-1)[:size]
  return (out / (width * size) ** 0.5).reshape(shape)


def hadamard(x: jax.Array) -> jax.Array:
  """H x for x f[n], n a power of 2, H of entries 1 and -1 (Sylvester's order)."""
  n, half = x.shape[-1], 1
  while half < n:
    pairs = x.reshape(-1, 2, half)
    x = jnp.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(n)
    half *= 2
  return x


def places(leaves: Mapping[str, jax.Array], targets: Sequence[str]) -> dict[str, tuple[str, ...]]:
  """One vector at the root, over all targets."""
  return {'intrinsic': tuple(kernels(leaves, targets))}


def init(
  key: jax.Array,
  weights: Mapping[str, jax.Array],
  *,
  targets: Sequence[str],
  dimension: int = 1000,
  projection_seed: int = 0,
  top_layers: int = 0,
) -> Intrinsic:
  """z = 0: the base's function, exactly.

  Args:
    key: not used.
    weights: {path: kernel or its shape}; not read.
    targets: patterns over the projections.
    dimension: d.
    projection_seed: of P.
    top_layers: move the last so many layers alone; 0 for all.
  """
  del key, weights
  if dimension < 1:
    raise ValueError(f'expected a dimension of at least 1, found {dimension}; raise '
                     'config.peft.dimension')
  return Intrinsic(jnp.zeros(dimension, jnp.float32), projection_seed, tuple(targets), top_layers)


def parameters(shape: tuple[int, ...], *, dimension: int = 1000) -> int:
  """The dimension d, in all."""
  del shape
  return dimension
