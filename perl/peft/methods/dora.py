"""DoRA: a trained length and a low-rank direction for each column (Liu et al., arXiv 2402.09353).

W' = m (W + s A B) / ||W + s A B||,      the norm of each column, of length I
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from perl.peft.methods import lora
from perl.products import dense, low_rank


class DoRA(struct.PyTreeNode):
  """y = f (x W + s (x A) B), f = m / ||W + s A B||, taken as a constant (section 4.3).

  Columns are normed without forming them:
  ||w + s A b||^2 = ||w||^2 + 2 s w^T A b + s^2 b^T A^T A b.
  """

  FIXED: ClassVar[tuple[str, ...]] = ('scale',)

  a: jax.Array  # f32[..., I, r]
  b: jax.Array  # f32[..., r, O], zero at init
  m: jax.Array  # f32[..., O], ||w|| at init
  scale: jax.Array  # f32[...]
  dropout: float = struct.field(pytree_node=False, default=0.0)
  detach: bool = struct.field(pytree_node=False, default=True)  # False: the norm has a gradient too

  def project(self, x: jax.Array, w: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """f[..., O] of x f[..., I] and w f[I, O]; `key` turns dropout of A's input on."""
    y = x @ w + low_rank(lora.dropped(x, self.dropout, key), self.a, self.b, self.scale)
    return y * self._factor(w).astype(y.dtype)

  def merge(self, w: jax.Array) -> jax.Array:
    """W', which does not tell how long the columns of W + s A B were: there is no `unmerge`."""
    low = self.scale[..., None, None] * (self.a @ self.b)
    return self._factor(w)[..., None, :] * (w + low)

  def _factor(self, w: jax.Array) -> jax.Array:
    """f32[..., O]: m / ||W + s A B||; 1 for a column of zeros."""
    w, s = dense(w).astype(self.b.dtype), self.scale[..., None, None]
    gram = self.a.mT @ self.a
    squares = (w * w).sum(-2)
    squares = squares + ((2 * s * (self.a.mT @ w) + s**2 * (gram @ self.b)) * self.b).sum(-2)
    norm = jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
    norm = jax.lax.stop_gradient(norm) if self.detach else norm
    return jnp.where(squares > 0, self.m / norm, 1.0)


def init(
  key: jax.Array,
  weight: jax.Array,
  *,
  rank: int = 8,
  alpha: float = 16.0,
  rslora: bool = False,
  dropout: float = 0.0,
) -> DoRA:
  """A and B as `lora.init` has them, m = ||W||: the base's function up to rounding.

  Args:
    key, rank, alpha, rslora, dropout: as `lora.init`.
    weight: f[..., I, O], the values themselves.
  """
  base = lora.init(key, weight, rank=rank, alpha=alpha, rslora=rslora, dropout=dropout)
  w = dense(weight).astype(jnp.float32)
  return DoRA(a=base.a, b=base.b, m=jnp.sqrt((w * w).sum(-2)), scale=base.scale, dropout=dropout)


def parameters(shape: tuple[int, ...], *, rank: int = 8) -> int:
  """r (I + O) + O a matrix."""
  *lead, _, columns = shape
  return lora.parameters(shape, rank=rank) + math.prod(lead) * columns
