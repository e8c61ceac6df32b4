"""Full tuning, the papers' baseline, through the same protocol: a trained copy of all weights."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct


class Full(struct.PyTreeNode):
  """W -> W', trained from W' = W."""

  LINEAR: ClassVar[dict[str, float | None]] = {'w': None}  # its zero is the base's own

  w: jax.Array  # f32[...], of the parameter's shape

  def project(self, x: jax.Array, w: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """X W'; the frozen w is not read."""
    del w, key
    return x @ self.w.astype(x.dtype)

  def merge(self, w: jax.Array) -> jax.Array:
    """W', which does not tell what W was: there is no `unmerge`."""
    del w
    return self.w


def places(leaves: Mapping[str, jax.Array], targets: Sequence[str]) -> dict[str, str]:
  """Every parameter: matrices, embeddings, norms and biases."""
  del targets
  return {name: name for name in leaves}


def init(key: jax.Array, weight: jax.Array) -> Full:
  """A float32 copy of the parameter."""
  del key
  if hasattr(weight, 'dequantize'):
    raise ValueError(
      f'expected a base in full precision under full tuning, found {weight.scheme.tag} kernels; '
      "set model.quantize='', or peft.name to a method that leaves them frozen, such as lora")
  # A copy, never the base's own buffer: the adapter's is donated to the step, the base's is not.
  return Full(jnp.array(weight, jnp.float32, copy=True))


def parameters(shape: tuple[int, ...]) -> int:
  """All of them."""
  return math.prod(shape)
