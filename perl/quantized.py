"""Quantized kernels: a base leaf in the place of a matrix [..., I, O], four or eight bits a weight.

QLoRA (Dettmers et al., arXiv 2305.14314): blocks of 64 inputs of one output column share a scale,
absmax / (largest code), and may have their scales quantized again (section 3, double quantization).
Layout and arithmetic are those of qwix's tiled arrays; only codes of four bits are kept two in a
byte, for an array of int4 takes a byte each in most memories. What makes them is in
perl/quantization.py.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from perl import trees
from perl.types import Tree

NF4 = (
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
  -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
  0.7229568362236023, 1.0,
)
"""Code -> value: quantiles of the normal distribution (QLoRA, appendix E)."""

FP4 = tuple(sign * x / 12 for sign in (1, -1) for x in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
"""Code -> value: a sign and bitsandbytes' float of three bits, its largest number scaled to 1."""

INT4 = (*range(8), *range(-8, 0))
"""Code -> value: two's complement."""

UINT4 = tuple(range(16))
"""Code -> value, counted from the least of the block (GGUF's Q4_1)."""

TABLES = {'nf4': NF4, 'fp4': FP4, 'int4': INT4, 'uint4': UINT4}
KINDS = (*TABLES, 'int8')


class Scheme(NamedTuple):
  """How kernels are quantized."""

  kind: str  # of KINDS
  block: int = 64  # inputs that share a scale
  double: bool = False  # quantize the scales too

  @property
  def tag(self) -> str:
    """'nf4-64', 'nf4-64-double' or 'native': names it in digests."""
    if self.kind == 'native':
      return self.kind
    return f'{self.kind}-{self.block}' + ('-double' if self.double else '')

  def of(self, digest: str) -> str:
    """The digest of a base that is so quantized, made of its source's: 'nf4-64:<digest>'."""
    return f'{self.tag}:{digest}'


NATIVE = Scheme('native', 0)
"""As a GGUF file has it, in blocks that its header tells; see `perl/hub/gguf_blocks.py`."""


def chosen(kind: str, block: int, double: bool) -> Scheme | None:
  """The scheme of a user's choice (config.model, convert import); None for the kind ''."""
  if kind == NATIVE.kind:
    return NATIVE
  return Scheme(kind, block, double) if kind else None


class Quantized(struct.PyTreeNode):
  """W [..., I, O] as codes and scales: W[b j + i, o] = value(code[b j + i, o]) * scale[j, o], and
  + minimum[j, o] where there is one.

  Every array begins with the axes before I and O, so that a stack [L, I, O] is sliced, scanned and
  mapped by its leading axis like a dense one. Of each block the byte in row i holds row i in its
  lower and row i + b / 2 in its upper four bits.
  """

  codes: jax.Array  # u8[..., I / 2, O], or i8[..., I, O]
  scale: jax.Array  # f32[..., I / b, O]; i8 with double quantization
  second: jax.Array | None  # f32[..., n], of n blocks of scales
  mean: jax.Array | None  # f32[...], about that of all scales of a matrix
  scheme: Scheme = struct.field(pytree_node=False)
  dtype: Any = struct.field(pytree_node=False)  # of what `dequantize` returns
  minimum: jax.Array | None = None  # f32[..., I / b, O], of 'uint4'

  @property
  def shape(self) -> tuple[int, ...]:
    """[..., I, O], as the dense kernel has it."""
    *lead, rows, columns = self.codes.shape
    return (*lead, rows * (2 if self.scheme.kind in TABLES else 1), columns)

  @property
  def ndim(self) -> int:
    """Number of axes."""
    return len(self.shape)

  @property
  def size(self) -> int:
    """Number of weights."""
    return math.prod(self.shape)

  @property
  def block(self) -> int:
    """b, inputs that share a scale: the scheme's, or the largest divisor of I below it."""
    return self.shape[-2] // self.scale.shape[-2]

  def astype(self, dtype: Any) -> 'Quantized':
    """The same codes; `dequantize` then returns that dtype. Nothing is computed."""
    return self.replace(dtype=jnp.dtype(dtype))

  def scales(self) -> jax.Array:
    """f32[..., I / b, O]."""
    if self.second is None:
      return self.scale
    *lead, rows, columns = self.scale.shape
    groups = self.scale.astype(jnp.float32).reshape(*lead, self.second.shape[-1], -1)
    values = (groups * self.second[..., None]).reshape(self.scale.shape)
    # Below 0 a scale would turn signs about.
    return jnp.maximum(values + self.mean[..., None, None], 0.0)

  def dequantize(self) -> jax.Array:
    """W, computed in float32 and returned in `dtype`."""
    *lead, rows, columns = self.shape
    blocks = (*lead, rows // self.block, -1, columns)
    codes = self.codes.reshape(blocks)
    if (table := TABLES.get(self.scheme.kind)) is not None:
      value = lambda code: jnp.asarray(table, jnp.float32).at[code].get(mode='promise_in_bounds')
      values = jnp.concatenate([value(codes & 15), value(codes >> 4)], -2)
    else:
      values = codes.astype(jnp.float32)
    if self.minimum is None:
      values = values * self.scales()[..., None, :]
    else:
      # A code times a scale of 20 bits is exact: the sum is one number in every program, whether or
      # not it joins the two operations. GGUF's scales have 11 bits, and are not changed.
      scales = jax.lax.reduce_precision(self.scales(), exponent_bits=8, mantissa_bits=19)
      values = values * scales[..., None, :] + self.minimum[..., None, :]
    return values.reshape(self.shape).astype(self.dtype)

  def __rmatmul__(self, x: jax.Array) -> jax.Array:
    """X W; see `product`."""
    dtype = jnp.result_type(x.dtype, self.dtype)
    return product(x.astype(dtype), self.astype(dtype))


@jax.custom_vjp
def product(x: jax.Array, w: Quantized) -> jax.Array:
  """f[..., O] of x f[..., I] and w [I, O] of one dtype.

  The backward pass dequantizes again, dx = dy W^T: kept for it are the codes, which are there
  anyway. They have no gradient.

  Raises:
    ValueError: w is a stack of matrices.
  """
  if w.ndim != 2:
    raise ValueError(
      f'expected one quantized matrix [I, O] in a product, found shape {list(w.shape)}; take a '
      'layer with jax.tree.map(lambda x: x[i], w), or dequantize')
  return x @ w.dequantize()


def _forward(x: jax.Array, w: Quantized) -> tuple[jax.Array, Quantized]:
  return product(x, w), w


def _backward(w: Quantized, dy: jax.Array) -> tuple[jax.Array, None]:
  # Or the compiler, seeing the same done twice, keeps the dense kernel from the forward pass on.
  w, dy = jax.lax.optimization_barrier((w, dy))
  return dy @ w.dequantize().T, None


product.defvjp(_forward, _backward)


def is_quantized(node: Any) -> bool:
  """True for a quantized kernel, of arrays or of their shapes."""
  return isinstance(node, Quantized)


def scheme_of(tree: Tree) -> Scheme | None:
  """The scheme of a tree's quantized kernels; None where there are none."""
  leaves = jax.tree.leaves(tree, is_leaf=is_quantized)
  return next((leaf.scheme for leaf in leaves if isinstance(leaf, Quantized)), None)


def bits_per_parameter(tree: Tree) -> float:
  """Bits a weight of the quantized kernels of a tree, by the bytes of their arrays, all counted."""
  leaves = [x for x in jax.tree.leaves(tree, is_leaf=is_quantized) if isinstance(x, Quantized)]
  return 8 * trees.size_bytes(leaves) / max(trees.count(leaves), 1)
