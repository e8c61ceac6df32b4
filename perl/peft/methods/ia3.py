"""IA3: trained factors of keys, values and the MLP's inner activations (Liu et al., 2205.05638)."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from perl.peft.protocol import kernels


class Outputs(struct.PyTreeNode):
  """y = (x W + b) l."""

  LINEAR: ClassVar[dict[str, float | None]] = {'outputs': 1.0}

  outputs: jax.Array  # f32[..., O], 1 at init

  def project(self, x: jax.Array, w: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """f[..., O] of x f[..., I] and w f[I, O]."""
    del key
    return (x @ w) * self.outputs.astype(x.dtype)

  def merge(self, w: jax.Array) -> jax.Array:
    """W diag(l)."""
    return w * self.outputs[..., None, :]

  def merge_bias(self, b: jax.Array) -> jax.Array:
    """b l, for a projection with a bias."""
    return b * self.outputs

  def unmerge(self, w: jax.Array) -> jax.Array:
    """The inverse of `merge`."""
    return w / _not_zero(self.outputs)[..., None, :]

  def unmerge_bias(self, b: jax.Array) -> jax.Array:
    """The inverse of `merge_bias`."""
    return b / _not_zero(self.outputs)


class Inputs(struct.PyTreeNode):
  """y = (x l) W + b."""

  LINEAR: ClassVar[dict[str, float | None]] = {'inputs': 1.0}

  inputs: jax.Array  # f32[..., I], 1 at init

  def project(self, x: jax.Array, w: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """f[..., O] of x f[..., I] and w f[I, O]."""
    del key
    return (x * self.inputs.astype(x.dtype)) @ w

  def merge(self, w: jax.Array) -> jax.Array:
    """diag(l) W."""
    return w * self.inputs[..., None]

  def unmerge(self, w: jax.Array) -> jax.Array:
    """The inverse of `merge`."""
    return w / _not_zero(self.inputs)[..., None]


def _not_zero(factors: jax.Array) -> jax.Array:
  if not isinstance(factors, jax.core.Tracer) and not jnp.all(factors):
    raise ValueError('expected factors other than 0 to take IA3 out of merged weights, found a 0; '
                     'load the base again')
  return factors


def places(leaves: Mapping[str, jax.Array], targets: Sequence[str]) -> dict[str, str]:
  """Keys, values and the MLP's last projection, as in the paper, whatever the targets."""
  del targets
  return {name: name for name in kernels(leaves, ('attn/(k|v)', 'mlp/down'))}


def init(key: jax.Array, weight: jax.Array, *, path: str) -> Outputs | Inputs:
  """Ones: the base's function, exactly; `path` is the kernel's."""
  del key
  *lead, rows, columns = weight.shape
  if path.endswith('down/kernel'):
    return Inputs(jnp.ones((*lead, rows), jnp.float32))
  return Outputs(jnp.ones((*lead, columns), jnp.float32))


def parameters(shape: tuple[int, ...], *, path: str) -> int:
  """O of keys and values, I of the last projection."""
  *lead, rows, columns = shape
  return math.prod(lead) * (rows if path.endswith('down/kernel') else columns)
