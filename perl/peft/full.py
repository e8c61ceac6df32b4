"""Full tuning, the papers' baseline, through the same protocol: a trained copy of all weights."""

import jax
import jax.numpy as jnp
from flax import struct

from perl.quantized import Quantized

TAKES_TARGETS = False
"""It acts on every parameter: matrices, embeddings, norms and biases."""


class Full(struct.PyTreeNode):
  """W -> W', trained from W' = W."""

  w: jax.Array  # f32[...], of the parameter's shape

  def project(self, x: jax.Array, w: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """X W'; the frozen w is not read."""
    del w, key
    return x @ self.w.astype(x.dtype)

  def merge(self, w: jax.Array) -> jax.Array:
    """W'."""
    del w
    return self.w

  def unmerge(self, w: jax.Array) -> jax.Array:
    """Refused: W' does not tell what W was."""
    raise ValueError(
      'expected a method that can be taken out of merged weights, found full tuning; '
      'load the base again'
    )


def init(key: jax.Array, weight: jax.Array, **options) -> Full:
  """A float32 copy of the parameter. Options of other methods (rank, ...) do not apply to it.

  Raises:
    ValueError: the parameter is quantized, as a frozen one is.
  """
  del key, options
  if isinstance(weight, Quantized):
    raise ValueError(
      f'expected a base in full precision under full tuning, found {weight.scheme.tag} kernels; '
      "set model.quantize='', or peft.name to a method that leaves them frozen, such as lora")
  # A copy, never the base's own buffer: the adapter's is donated to the step, the base's is not.
  return Full(jnp.array(weight, jnp.float32, copy=True))
