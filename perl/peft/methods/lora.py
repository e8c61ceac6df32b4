"""LoRA: W + s A B (Hu et al., arXiv 2106.09685; rsLoRA: Kalajdzievski, arXiv 2312.03732)."""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from perl.peft.protocol import Additive
from perl.products import low_rank


class LoRA(Additive, struct.PyTreeNode):
  """y = x W + s (x A) B, with s = alpha / r, or alpha / sqrt(r) for rsLoRA."""

  FIXED: ClassVar[tuple[str, ...]] = ('scale',)

  a: jax.Array  # f32[..., I, r]
  b: jax.Array  # f32[..., r, O], zero at init
  scale: jax.Array  # f32[...]; data, so that a population may mix ranks and alphas; never trained
  dropout: float = struct.field(pytree_node=False, default=0.0)

  def project(self, x: jax.Array, w: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """f[..., O] of x f[..., I] and w f[I, O]; `key` turns dropout of the adapter's input on."""
    return x @ w + low_rank(dropped(x, self.dropout, key), self.a, self.b, self.scale)

  def change(self, w: jax.Array) -> jax.Array:
    """s A B."""
    return self.scale[..., None, None] * (self.a @ self.b)

  def to_lora(self, w: jax.Array) -> 'LoRA':
    """Itself, with all of it trained."""
    del w
    return LoRA(a=self.a, b=self.b, scale=self.scale, dropout=self.dropout)


def dropped(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """x with a share `rate` of its entries 0 and the others larger; x itself without a key."""
  if key is None or rate == 0:
    return x
  keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
  return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def concatenate(first: LoRA, second: LoRA) -> LoRA:
  """One LoRA of both: W + s1 A1 B1 + s2 A2 B2, of the summed rank; B carries the scales."""
  scaled = lambda x: x.scale[..., None, None] * x.b
  return LoRA(
    a=jnp.concatenate([first.a, second.a], -1),
    b=jnp.concatenate([scaled(first), scaled(second)], -2),
    scale=jnp.ones_like(first.scale),
    dropout=second.dropout,
  )


def init(
  key: jax.Array,
  weight: jax.Array,
  kind: type[LoRA] = LoRA,
  *,
  rank: int = 8,
  alpha: float = 16.0,
  rslora: bool = False,
  dropout: float = 0.0,
) -> LoRA:
  """A ~ U(-1/sqrt(I), 1/sqrt(I)), B = 0: the base's function, exactly.

  (That is Kaiming-uniform with a = sqrt(5), the initialisation of the authors' code and of PEFT.)

  Args:
    key: typed PRNG key.
    weight: f[..., I, O], or its shape.
    kind: LoRA, or a class of the same fields.
    rank: r, 1 to min(I, O).
    alpha: numerator of the scale.
    rslora: divide by sqrt(r) and not by r.
    dropout: rate on the adapter's input; active only where a dropout key is given.
  """
  check(weight.shape, rank, dropout)
  *lead, rows, columns = weight.shape
  bound = rows**-0.5
  return kind(
    a=jax.random.uniform(key, (*lead, rows, rank), jnp.float32, -bound, bound),
    b=jnp.zeros((*lead, rank, columns), jnp.float32),
    scale=jnp.full(lead, alpha / (rank**0.5 if rslora else rank), jnp.float32),
    dropout=dropout,
  )


def check(shape: tuple[int, ...], rank: int, dropout: float) -> None:
  """Raises ValueError for a rank that a matrix of that shape cannot have, or no rate of dropout."""
  *_, rows, columns = shape
  if not 1 <= rank <= min(rows, columns):
    raise ValueError(
      f'expected a rank from 1 to {min(rows, columns)} for a matrix of {rows} x {columns}, '
      f'found {rank}; lower config.peft.rank')
  if not 0.0 <= dropout < 1.0:
    raise ValueError(f'expected a dropout rate in [0, 1), found {dropout}')


def parameters(shape: tuple[int, ...], *, rank: int = 8) -> int:
  """r (I + O) a matrix."""
  *lead, rows, columns = shape
  return math.prod(lead) * rank * (rows + columns)
