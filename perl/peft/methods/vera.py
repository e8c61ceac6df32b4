"""VeRA: vectors between frozen random matrices that all layers share (Kopiczko et al., 2310.11454).

  W' = W + (A diag(d)) (B diag(b))

A [I, r] and B [r, O] are drawn from a seed wherever they are needed, and stored nowhere: matrices
of one shape have the same pair.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from perl.peft.methods import lora
from perl.peft.methods.lora import LoRA
from perl.peft.protocol import Additive
from perl.products import low_rank


class VeRA(Additive, struct.PyTreeNode):
  """y = x W + ((x A) d B) b; trained are d and b."""

  FIXED: ClassVar[tuple[str, ...]] = ('shared_a', 'shared_b')

  d: jax.Array  # f32[..., r], 0.1 at init
  b: jax.Array  # f32[..., O], zero at init
  shared_a: jax.Array | None = None  # f32[..., I, r] of a pair that was not drawn here
  shared_b: jax.Array | None = None  # f32[..., r, O]
  projection_seed: int = struct.field(pytree_node=False, default=0)
  dropout: float = struct.field(pytree_node=False, default=0.0)

  def project(self, x: jax.Array, w: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """f[..., O] of x f[..., I] and w f[I, O]; `key` turns dropout of A's input on."""
    a, b = self.pair(x.shape[-1])
    z = lora.dropped(x, self.dropout, key)
    return x @ w + low_rank(z, a, self.d[..., None] * b * self.b, jnp.ones((), self.d.dtype))

  def change(self, w: jax.Array) -> jax.Array:
    """(A diag(d)) (B diag(b))."""
    return self.to_lora(w).change(w)

  def to_lora(self, w: jax.Array) -> LoRA:
    """The same function as plain LoRA over w (its shape suffices), with A and B written out."""
    a, b = self.pair(w.shape[-2])
    lead = self.d.shape[:-1]
    return LoRA(
      a=jnp.broadcast_to(a, (*lead, *a.shape[-2:])), b=self.d[..., None] * b * self.b[..., None, :],
      scale=jnp.ones(lead, jnp.float32), dropout=self.dropout)

  def pair(self, rows: int) -> tuple[jax.Array, jax.Array]:
    """(A f32[..., I, r], B f32[..., r, O]) beside a matrix of so many rows."""
    if self.shared_a is not None:
      return self.shared_a, self.shared_b
    return pair(self.projection_seed, rows, self.d.shape[-1], self.b.shape[-1])


def pair(seed: int, rows: int, rank: int, columns: int) -> tuple[jax.Array, jax.Array]:
  """(A f32[I, r], B f32[r, O]), uniform with bounds sqrt(3 2 / I) and sqrt(3 2 / r) (Kaiming)."""
  keys = jax.random.split(jax.random.key(seed))
  draw = lambda key, shape: jax.random.uniform(
    key, shape, jnp.float32, -((6 / shape[0]) ** 0.5), (6 / shape[0]) ** 0.5)
  return draw(keys[0], (rows, rank)), draw(keys[1], (rank, columns))


def init(
  key: jax.Array,
  weight: jax.Array,
  *,
  rank: int = 8,
  dropout: float = 0.0,
  projection_seed: int = 0,
) -> VeRA:
  """d = 0.1, b = 0: the base's function, exactly.

  Args:
    key: not used.
    weight: f[..., I, O], or its shape.
    rank: r; larger than LoRA's (256, 1024), for it costs r numbers a matrix.
    dropout: as `lora.init`.
    projection_seed: of A and B.
  """
  del key
  *lead, _, columns = weight.shape
  if rank < 1:
    raise ValueError(f'expected a rank of at least 1, found {rank}; raise config.peft.rank')
  return VeRA(
    d=jnp.full((*lead, rank), 0.1, jnp.float32), b=jnp.zeros((*lead, columns), jnp.float32),
    projection_seed=projection_seed, dropout=dropout)


def parameters(shape: tuple[int, ...], *, rank: int = 8) -> int:
  """r + O a matrix."""
  *lead, _, columns = shape
  return math.prod(lead) * (rank + columns)
