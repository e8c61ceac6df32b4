"""What merging and quantizing cost: differences of logits, and of the weights themselves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from perl import trees
from perl.models import lm
from perl.models.transformer import Transformer
from perl.peft import adapters
from perl.products import dense
from perl.quantized import Quantized, is_quantized
from perl.types import Tree


class Merged(struct.PyTreeNode):
  """An adapter that is merged into its kernel at each product, for no longer: x @ merge(W).

  Of a quantized base no dense copy is ever made but of the layer that is computed.
  """

  delta: Any
  dtype: Any = struct.field(pytree_node=False)  # of the merged kernel

  def project(
    self, x: jax.Array, w: jax.Array | Quantized, key: jax.Array | None = None
  ) -> jax.Array:
    """X W', W' rounded as in a merged base."""
    del key
    return x @ self.merge(w).astype(x.dtype)

  def merge(self, w: jax.Array | Quantized) -> jax.Array:
    """W', computed in float32."""
    return self.delta.merge(dense(w.astype(jnp.float32))).astype(self.dtype)

  def merge_bias(self, b: jax.Array) -> jax.Array:
    """What the adapter makes of the projection's bias."""
    return self.delta.merge_bias(b) if hasattr(self.delta, 'merge_bias') else b


def logit_difference(
  model: Transformer, base: Tree, adapter: Tree, tokens: jax.Array, mask: jax.Array
) -> float:
  """max over real tokens of |logits(base, adapter) - logits(merge(base, adapter), {})|.

  Args:
    model, base, adapter: the unmerged model.
    tokens: i32[B, T], a few rows of data.
    mask: bool[B, T].
  """

  @jax.jit
  def largest(base, merged, lazy, adapter):
    apart = lm.logits(model, base, adapter, tokens, mask)
    together = lm.logits(model, merged, lazy, tokens, mask)
    return jnp.max(jnp.where(mask[..., None], jnp.abs(apart - together), 0.0))

  nodes, leaves = adapters.nodes(trees.spread(base, adapter)), trees.flat(base)
  lazy = {n: Merged(d, leaves[n].dtype) for n, d in nodes.items() if is_quantized(leaves.get(n))}
  rest = trees.nest({n: d for n, d in nodes.items() if n not in lazy})
  return float(largest(base, adapters.merge(base, rest), trees.nest(lazy), adapter))


def merge_error(base: Tree, adapter: Tree) -> dict[str, float]:
  """How far merged kernels are, in the base's dtypes, from W + delta in float32.

  Args:
    base, adapter: the unmerged model; quantized kernels count as what they dequantize to.

  Returns:
    merge_error_max, the largest |difference| over the largest |weight|, and merge_error_rms, the
    RMS of the differences over that of the weights; 0 of an adapter without matrices.
  """

  @jax.jit
  def compared(delta, leaf):
    exact = delta.merge(dense(leaf.astype(jnp.float32)))
    return _compared(exact.astype(leaf.dtype), exact)

  leaves = trees.flat(base)
  pairs = [compared(d, leaves[name]) for name, d in adapters.nodes(adapter).items()]
  return _relative('merge_error', pairs)


def quantization_error(original: Tree, quantized: Tree) -> dict[str, float]:
  """How far quantized kernels are from those that they were made of.

  Args:
    original: the dense base.
    quantized: the same, quantized.

  Returns:
    quantization_error_max and quantization_error_rms, relative as in `merge_error`.
  """
  leaves = trees.flat(original)
  compared = jax.jit(lambda q, exact: _compared(q.astype(jnp.float32).dequantize(), exact))
  pairs = [compared(q, leaves[name]) for name, q in trees.flat(quantized).items()
           if is_quantized(q)]
  return _relative('quantization_error', pairs)


def _compared(kernel: jax.Array, exact: jax.Array) -> jax.Array:
  """f32[4]: largest |difference|, largest |weight|, and the sums of their squares."""
  exact = exact.astype(jnp.float32)
  apart = kernel.astype(jnp.float32) - exact
  return jnp.stack([f(x) for f in (lambda x: jnp.max(jnp.abs(x)), lambda x: jnp.sum(x * x))
                    for x in (apart, exact)])


def _relative(name: str, pairs: list[jax.Array]) -> dict[str, float]:
  sums = np.asarray(jax.device_get(pairs), np.float64).reshape(-1, 4)
  (most, largest), (apart, whole) = sums[:, :2].max(0, initial=0), sums[:, 2:].sum(0)
  return {f'{name}_max': float(most / max(largest, 1e-30)),
          f'{name}_rms': float((apart / max(whole, 1e-30)) ** 0.5)}
