"""Quantized kernels: a base leaf in the place of a matrix [..., I, O], four or eight bits a weight.

QLoRA (Dettmers et al., arXiv 2305.14314): blocks of 64 inputs of one output column share a scale,
absmax / (largest code), and may have their scales quantized again (section 3, double quantization).
Layout and arithmetic are those of qwix's tiled arrays (`Quantized.qarray`); only codes of four bits
are kept two in a byte, for an array of int4 takes a byte each in most memories.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import qwix
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

TABLES = {'nf4': NF4, 'fp4': FP4, 'int4': INT4}
KINDS = (*TABLES, 'int8')
SECOND_BLOCK = 256
"""Scales in a block of double quantization (QLoRA, section 3)."""


class Scheme(NamedTuple):
  """How kernels are quantized."""

  kind: str  # of KINDS
  block: int = 64  # inputs that share a scale
  double: bool = False  # quantize the scales too

  @property
  def tag(self) -> str:
    """'nf4-64' or 'nf4-64-double': names it in digests."""
    return f'{self.kind}-{self.block}' + ('-double' if self.double else '')

  def of(self, digest: str) -> str:
    """The digest of a base that is so quantized, made of its source's: 'nf4-64:<digest>'."""
    return f'{self.tag}:{digest}'


class Quantized(struct.PyTreeNode):
  """W [..., I, O] as codes and scales: W[b j + i, o] = value(code[b j + i, o]) * scale[j, o].

  Every array begins with the axes before I and O, so that a stack [L, I, O] is sliced, scanned and
  mapped by its leading axis like a dense one. Of each block the byte in row i holds row i in its
  lower and row i + b / 2 in its upper four bits.
  """

  codes: jax.Array  # u8[..., I / 2, O], or i8[..., I, O]
  scale: jax.Array  # f32[..., I / b, O]; i8 with double quantization
  second: jax.Array | None  # f32[..., n], of n blocks of scales
  mean: jax.Array | None  # f32[...], of all scales of a matrix
  scheme: Scheme = struct.field(pytree_node=False)
  dtype: Any = struct.field(pytree_node=False)  # of what `dequantize` returns

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
    found = (groups * self.second[..., None]).reshape(self.scale.shape)
    # Below 0 a scale would turn signs about.
    return jnp.maximum(found + self.mean[..., None, None], 0.0)

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
    return (values * self.scales()[..., None, :]).reshape(self.shape).astype(self.dtype)

  def qarray(self) -> qwix.QArray:
    """The same as qwix's tiled array, a code an element, for qwix's own functions.

    Raises:
      ValueError: fp4, which qwix does not have.
    """
    kind = self.scheme.kind
    if kind == 'fp4':
      raise ValueError('expected nf4, int8 or int4, which qwix has, found fp4; quantize as nf4')
    if kind == 'int8':
      return qwix.QArray(self.codes, self.scales())
    *lead, rows, columns = self.shape
    codes = self.codes.reshape(*lead, rows // self.block, -1, columns)
    codes = jnp.concatenate([codes & 15, codes >> 4], -2).reshape(self.shape)
    if kind == 'nf4':
      return qwix.QArray(codes.astype(jnp.uint4), self.scales(), qtype='nf4')
    return qwix.QArray(jnp.where(codes > 7, codes.astype(jnp.int8) - 16, codes).astype(jnp.int4),
                       self.scales())

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
      'layer with jax.tree.map(lambda x: x[i], w), or dequantize'
    )
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


def dense(w: jax.Array | Quantized) -> jax.Array:
  """The array itself, or a quantized kernel's values in its dtype."""
  return w.dequantize() if isinstance(w, Quantized) else w


def scheme_of(tree: Tree) -> Scheme | None:
  """The scheme of a tree's quantized kernels; None where there are none."""
  leaves = jax.tree.leaves(tree, is_leaf=is_quantized)
  return next((leaf.scheme for leaf in leaves if isinstance(leaf, Quantized)), None)


def bits_per_parameter(tree: Tree) -> float:
  """Bits a weight of the quantized kernels of a tree, by the bytes of their arrays, all counted."""
  leaves = [x for x in jax.tree.leaves(tree, is_leaf=is_quantized) if isinstance(x, Quantized)]
  return 8 * trees.size_bytes(leaves) / max(trees.count(leaves), 1)


# --- Quantization


def quantize(kernel: jax.Array, scheme: Scheme, *, dtype: Any = None) -> Quantized:
  """The kernel f[..., I, O] with I cut into blocks; a matrix at a time, computed in float32.

  Where the scheme's block does not divide I, the largest even divisor below it is the block (any
  divisor for int8): scales then take more bits, which `bits_per_parameter` shows.

  Args:
    kernel: a matrix or a stack of matrices.
    scheme: kind, block, double quantization.
    dtype: of the dequantized kernel; None is the kernel's.

  Raises:
    ValueError: no such kind, or no block can be had.
  """
  _check(kernel.shape, scheme)
  return encoder(scheme, jnp.dtype(dtype or kernel.dtype))(kernel)


def _check(shape: tuple[int, ...], scheme: Scheme) -> None:
  if scheme.kind not in KINDS:
    raise ValueError(f'expected a kind among {KINDS}, found {scheme.kind!r}; choose one')
  if len(shape) < 2:
    raise ValueError(f'expected a matrix [..., I, O] to quantize, found shape {list(shape)}; '
                     'leave vectors as they are')
  if _divisor(shape[-2], scheme.block, 1 if scheme.kind == 'int8' else 2) < 1:
    raise ValueError(
      f'expected an even number of inputs and a block of at least 2 for {scheme.kind}, found '
      f'{shape[-2]} inputs and blocks of {scheme.block}; use int8, or a larger block'
    )


def _divisor(number: int, most: int, step: int) -> int:
  """The largest divisor of the number up to `most` that is a multiple of `step`; 0 if none is."""
  most = min(number, most)
  return next((d for d in range(most, 0, -1) if number % d == 0 and d % step == 0), 0)


def _quantize(kernel: jax.Array, scheme: Scheme, dtype: Any) -> Quantized:
  if kernel.ndim > 2:  # a matrix at a time: the float32 copy is one matrix
    return jax.lax.map(lambda matrix: _quantize(matrix, scheme, dtype), kernel)
  kernel = kernel.astype(jnp.float32)
  if scheme.kind == 'int8':
    block = _divisor(kernel.shape[0], scheme.block, 1)
    codes, scale = _with_qwix(kernel, jnp.int8, block)
  else:
    block = _divisor(kernel.shape[0], scheme.block, 2)
    if scheme.kind == 'int4':
      codes, scale = _with_qwix(kernel, jnp.int4, block)
      codes = codes.astype(jnp.uint8) & 15
    else:
      codes, scale = _nearest(kernel, TABLES[scheme.kind], block)
    low, high = jnp.split(codes.reshape(-1, block, kernel.shape[1]), 2, 1)
    codes = (low | (high << 4)).reshape(-1, kernel.shape[1])
  empty = jnp.max(jnp.abs(kernel.reshape(-1, block, kernel.shape[1])), 1) == 0
  parts = _scales(scale, empty) if scheme.double else (jnp.where(empty, 0.0, scale), None, None)
  return Quantized(codes, *parts, scheme, dtype)


def _with_qwix(kernel: jax.Array, kind: Any, block: int) -> tuple[jax.Array, jax.Array]:
  """(codes [I, O], scales f32[I / b, O])."""
  found = qwix.quantize(kernel, kind, channelwise_axes=(1,), tiled_axes={0: block})
  return found.qvalue, found.scale


def _nearest(kernel: jax.Array, table: tuple, block: int) -> tuple[jax.Array, jax.Array]:
  """(codes u8[I, O] of the nearest values of a table, scales f32[I / b, O], each a block's absmax).

  As qwix does for nf4, but it compares with 15 edges and holds no distance to each of 16 values.
  """
  blocks = kernel.reshape(-1, block, kernel.shape[1])
  scale = jnp.max(jnp.abs(blocks), 1, keepdims=True)
  values, order = np.unique(np.asarray(table, np.float32), return_index=True)
  x, place = blocks / jnp.where(scale > 0, scale, 1.0), jnp.zeros(blocks.shape, jnp.uint8)
  for edge in (values[1:] + values[:-1]) / 2:
    place += x > edge
  codes = jnp.asarray(order, jnp.uint8).at[place].get(mode='promise_in_bounds')
  return codes.reshape(kernel.shape), scale[:, 0]


def _scales(scale: jax.Array, empty: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(i8 scales less their mean, f32[n] scales of these, f32[] mean): QLoRA's double quantization.

  A block of zeros may have any scale: it takes the mean.
  """
  some = jnp.maximum(jnp.sum(~empty), 1)
  mean = jnp.sum(jnp.where(empty, 0.0, scale)) / some
  apart = jnp.where(empty, 0.0, scale - mean).reshape(-1)
  group = _divisor(apart.size, SECOND_BLOCK, 1)
  found = qwix.quantize(apart, jnp.int8, tiled_axes={0: group})
  return found.qvalue.reshape(scale.shape), found.scale, mean


def quantize_tree(base: Tree, scheme: Scheme | None, *, like: bool = False) -> Tree:
  """The base with the projections of its layers quantized; embeddings, norms, biases, heads stay.

  Args:
    base: dense; a leaf may be an array or a jax.ShapeDtypeStruct.
    scheme: None changes nothing.
    like: the result by shapes alone; nothing is computed.

  Raises:
    ValueError: it is quantized already, or see `quantize`.
  """
  if scheme is None:
    return base
  if (found := scheme_of(base)) is not None:
    raise ValueError(f'expected a base in full precision to quantize as {scheme.tag}, found '
                     f'{found.tag}; load the checkpoint that it was made of')

  def one(path, leaf):
    if not quantizable(trees.path_string(path)):
      return leaf
    _check(leaf.shape, scheme)
    if like:
      return jax.eval_shape(lambda x: _quantize(x, scheme, jnp.dtype(leaf.dtype)), leaf)
    return quantize(leaf, scheme)

  return jax.tree_util.tree_map_with_path(one, base)


def quantizable(name: str) -> bool:
  """Whether the parameter of that path is a projection of a layer."""
  return name.startswith('layers/') and name.endswith('/kernel')


@functools.lru_cache(maxsize=64)
def encoder(scheme: Scheme, dtype: Any) -> Any:
  """`quantize` of arrays of good shapes, compiled once a shape."""
  return jax.jit(lambda kernel: _quantize(kernel, scheme, dtype))
