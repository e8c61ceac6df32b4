"""From dense kernels to quantized ones: absmax blocks, nearest codes, double quantization."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix

from perl import trees
from perl.quantized import KINDS, TABLES, Quantized, Scheme, scheme_of
from perl.types import Tree

SECOND_BLOCK = 256
"""Scales in a block of double quantization (QLoRA, section 3)."""


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
      f'{shape[-2]} inputs and blocks of {scheme.block}; use int8, or a larger block')


def _divisor(number: int, most: int, step: int) -> int:
  """The largest divisor of the number up to `most` that is a multiple of `step`; 0 if none is."""
  most = min(number, most)
  return next((d for d in range(most, 0, -1) if number % d == 0 and d % step == 0), 0)


def _quantize(kernel: jax.Array, scheme: Scheme, dtype: Any) -> Quantized:
  if kernel.ndim > 2:  # a matrix at a time: the float32 copy is one matrix
    return jax.lax.map(lambda matrix: _quantize(matrix, scheme, dtype), kernel)
  kernel, minimum = kernel.astype(jnp.float32), None
  if scheme.kind == 'int8':
    block = _divisor(kernel.shape[0], scheme.block, 1)
    codes, scale = _with_qwix(kernel, jnp.int8, block)
  else:
    block = _divisor(kernel.shape[0], scheme.block, 2)
    if scheme.kind == 'int4':
      codes, scale = _with_qwix(kernel, jnp.int4, block)
      codes = codes.astype(jnp.uint8) & 15
    elif scheme.kind == 'uint4':
      codes, scale, minimum = _between(kernel, block)
    else:
      codes, scale = _nearest(kernel, TABLES[scheme.kind], block)
    low, high = jnp.split(codes.reshape(-1, block, kernel.shape[1]), 2, 1)
    codes = (low | (high << 4)).reshape(-1, kernel.shape[1])
  empty = jnp.max(jnp.abs(kernel.reshape(-1, block, kernel.shape[1])), 1) == 0
  parts = _scales(scale, empty) if scheme.double else (jnp.where(empty, 0.0, scale), None, None)
  return Quantized(codes, *parts, scheme, dtype, minimum)


def _between(kernel: jax.Array, block: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(codes u8[I, O], scales f32[I / b, O], minima f32[I / b, O]): a block's least number and the 15
  equal steps to its largest (ggml's Q4_1).
  """
  blocks = kernel.reshape(-1, block, kernel.shape[1])
  minimum = jnp.min(blocks, 1)
  scale = (jnp.max(blocks, 1) - minimum) / 15
  steps = (blocks - minimum[:, None]) / jnp.where(scale > 0, scale, 1.0)[:, None]
  codes = jnp.clip(jnp.round(steps), 0, 15).astype(jnp.uint8)
  return codes.reshape(kernel.shape), scale, minimum


def _with_qwix(kernel: jax.Array, kind: Any, block: int) -> tuple[jax.Array, jax.Array]:
  """(codes [I, O], scales f32[I / b, O])."""
  quantized = qwix.quantize(kernel, kind, channelwise_axes=(1,), tiled_axes={0: block})
  return quantized.qvalue, quantized.scale


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

  The mean is of scales in whole 256ths of the largest: a sum of integers is the same in any order,
  and so the codes are the same bits on any mesh. A block of zeros may have any scale: it takes the
  mean.
  """
  most = jnp.max(scale, initial=0.0, where=~empty)
  parts = jnp.round(scale * (256.0 / jnp.where(most > 0, most, 1.0))).astype(jnp.uint32)
  total = jnp.sum(jnp.where(empty, 0, parts)).astype(jnp.float32)
  mean = most * (total / (256.0 * jnp.maximum(jnp.sum(~empty), 1)))
  apart = jnp.where(empty, 0.0, scale - mean).reshape(-1)
  group = _divisor(apart.size, SECOND_BLOCK, 1)
  quantized = qwix.quantize(apart, jnp.int8, tiled_axes={0: group})
  # So that code * scale is exact in float32, and every program finds the same sum with the mean,
  # whether or not it joins the two operations in one.
  second = jax.lax.reduce_precision(quantized.scale, exponent_bits=8, mantissa_bits=15)
  return quantized.qvalue.reshape(scale.shape), second, mean


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
  if (present := scheme_of(base)) is not None:
    raise ValueError(f'expected a base in full precision to quantize as {scheme.tag}, found '
                     f'{present.tag}; load the checkpoint that it was made of')

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
def encoder(scheme: Scheme, dtype: Any) -> Callable[[jax.Array], Quantized]:
  """`quantize` of arrays of good shapes, compiled once a shape."""
  return jax.jit(lambda kernel: _quantize(kernel, scheme, dtype))
