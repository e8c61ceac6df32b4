"""BitFit: biases alone (Ben Zaken et al., arXiv 2106.10199).

Where the base has biases they are trained. A targeted projection that has none (Llama's) gets one,
zero at init: it cannot be merged, for the base has no place for it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from perl.peft.protocol import Additive, kernels


class Bias(Additive, struct.PyTreeNode):
  """b -> b + delta."""

  LINEAR: ClassVar[dict[str, float | None]] = {'delta': 0.0}

  delta: jax.Array  # f32[..., O], zero at init

  def change(self, b: jax.Array) -> jax.Array:
    """delta."""
    return self.delta


class NewBias(struct.PyTreeNode):
  """y = x W + b."""

  LINEAR: ClassVar[dict[str, float | None]] = {'added': 0.0}

  added: jax.Array  # f32[..., O], zero at init

  def project(self, x: jax.Array, w: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """f[..., O] of x f[..., I] and w f[I, O]."""
    del key
    return x @ w + self.added.astype(x.dtype)


def places(leaves: Mapping[str, jax.Array], targets: Sequence[str]) -> dict[str, str]:
  """Every bias of the base, norms' among them; the kernels of targets that have none."""
  biases = {name: name for name in leaves if name.endswith('/bias')}
  bare = [name for name in kernels(leaves, targets)
          if f'{name.removesuffix("/kernel")}/bias' not in leaves]
  return biases | {name: name for name in bare}


def init(key: jax.Array, weight: jax.Array, *, path: str) -> Bias | NewBias:
  """Zeros: the base's function, exactly; `path` is the parameter's."""
  del key
  if path.endswith('/bias'):
    return Bias(jnp.zeros(weight.shape, jnp.float32))
  return NewBias(jnp.zeros((*weight.shape[:-2], weight.shape[-1]), jnp.float32))


def parameters(shape: tuple[int, ...], *, path: str) -> int:
  """O a bias."""
  return math.prod(shape if path.endswith('/bias') else (*shape[:-2], shape[-1]))
