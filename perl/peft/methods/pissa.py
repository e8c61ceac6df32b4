"""PiSSA: LoRA that begins as the largest part of W (Meng et al., arXiv 2404.02948).

  A0 = U_r sqrt(S_r),  B0 = sqrt(S_r) V_r^T  of W = U S V^T;      W' = (W - A0 B0) + A B

Published code subtracts A0 B0 from the weights. Here the base is shared and stays as it is: A0 and
B0 are kept beside A and B, as data.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from perl.peft.methods import lora
from perl.peft.methods.lora import LoRA, parameters
from perl.peft.protocol import Additive
from perl.products import dense, low_rank

__all__ = ['PiSSA', 'init', 'parameters']


class PiSSA(Additive, struct.PyTreeNode):
  """y = x W + (x A) B - (x A0) B0."""

  FIXED: ClassVar[tuple[str, ...]] = ('a0', 'b0')

  a: jax.Array  # f32[..., I, r]
  b: jax.Array  # f32[..., r, O]
  a0: jax.Array  # their values at init
  b0: jax.Array
  dropout: float = struct.field(pytree_node=False, default=0.0)

  def project(self, x: jax.Array, w: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """f[..., O] of x f[..., I] and w f[I, O]; `key` turns dropout of A's input on."""
    one = jnp.ones((), self.a.dtype)
    trained = low_rank(lora.dropped(x, self.dropout, key), self.a, self.b, one)
    return x @ w + (trained - low_rank(x, self.a0, self.b0, one))

  def change(self, w: jax.Array) -> jax.Array:
    """A B - A0 B0."""
    return self.a @ self.b - self.a0 @ self.b0

  def to_lora(self, w: jax.Array) -> LoRA:
    """The same function as plain LoRA over W, of rank 2 r: [A A0] [B; -B0] (appendix C)."""
    del w
    return LoRA(
      a=jnp.concatenate([self.a, self.a0], -1), b=jnp.concatenate([self.b, -self.b0], -2),
      scale=jnp.ones(self.a.shape[:-2], jnp.float32), dropout=self.dropout)


def init(
  key: jax.Array, weight: jax.Array, *, rank: int = 8, dropout: float = 0.0
) -> PiSSA:
  """The r largest singular triplets of each matrix; alpha has no place (s = 1).

  Args:
    key: not used.
    weight: f[..., I, O], the values themselves.
    rank: r, 1 to min(I, O).
    dropout: as `lora.init`.
  """
  del key
  lora.check(weight.shape, rank, dropout)
  u, s, v = jnp.linalg.svd(dense(weight).astype(jnp.float32), full_matrices=False)
  root = jnp.sqrt(s[..., :rank])
  a, b = u[..., :rank] * root[..., None, :], root[..., None] * v[..., :rank, :]
  return PiSSA(a=a, b=b, a0=jnp.copy(a), b0=jnp.copy(b), dropout=dropout)
