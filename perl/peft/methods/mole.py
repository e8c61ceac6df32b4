"""A mixture of LoRA experts with a top-k router (as ELDER, Li et al., arXiv 2408.11869, routes).

y = x W + s sum over e in top-k(x R + c) of g_e (x A_e) B_e,      g = softmax of those x R
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from perl.peft.methods import lora


class Mixture(struct.PyTreeNode):
  """E experts beside one matrix, k of them for each token.

  Load balancing is by the bias c, which picks experts and weighs none (Wang et al., 2408.15664).
  What stands in place of its derivative is how much too often each expert was picked: the optimizer
  lowers the bias of the busy ones. Tokens count by the norm of their gradient, so that padding
  counts nothing, and the scale is the loss's whatever that is divided by.
  """

  FIXED: ClassVar[tuple[str, ...]] = ('scale',)
  STEERED: ClassVar[tuple[str, ...]] = ('balance',)  # its gradient is no derivative of the loss

  a: jax.Array  # f32[..., E, I, r]
  b: jax.Array  # f32[..., E, r, O], zero at init
  router: jax.Array  # f32[..., I, E]
  balance: jax.Array  # f32[..., E], zero at init
  scale: jax.Array  # f32[...]
  top_experts: int = struct.field(pytree_node=False, default=2)  # k
  dropout: float = struct.field(pytree_node=False, default=0.0)

  def project(self, x: jax.Array, w: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """f[..., O] of x f[..., I] and w f[I, O]; `key` turns dropout of the experts' input on."""
    gates = self.gates(x)
    z = lora.dropped(x, self.dropout, key)
    inner = jnp.einsum('...i,eir->...er', z, self.a.astype(x.dtype))
    inner = inner * (self.scale * gates).astype(x.dtype)[..., None]
    y = jnp.einsum('...er,ero->...o', inner, self.b.astype(x.dtype))
    return _steer(x @ w + y, self.balance, (gates > 0).astype(jnp.float32) / self.top_experts)

  def gates(self, x: jax.Array) -> jax.Array:
    """f32[..., E]: the weight of each expert for each token; 0 for all but k, in sum 1."""
    logits = x.astype(jnp.promote_types(x.dtype, jnp.float32)) @ self.router
    chosen = jax.lax.top_k(jax.lax.stop_gradient(logits + self.balance), self.top_experts)[1]
    picked = jax.nn.one_hot(chosen, logits.shape[-1], dtype=bool).any(-2)
    return jax.nn.softmax(logits, axis=-1, where=picked)


@jax.custom_vjp
def _steer(y: jax.Array, balance: jax.Array, picked: jax.Array) -> jax.Array:
  """y; the gradient of `balance` f32[E] is the load above an even one.

  Args:
    y: f[..., O].
    balance: f32[E].
    picked: f32[..., E], 1 / k for the experts of a token.
  """
  del balance, picked
  return y


def _steer_backward(picked, dy):
  weight = jnp.linalg.norm(dy.astype(jnp.float32), axis=-1, keepdims=True)
  load = (weight * picked).reshape(-1, picked.shape[-1]).sum(0)
  return dy, load - load.mean(), None


_steer.defvjp(lambda y, balance, picked: (y, picked), _steer_backward)


def init(
  key: jax.Array,
  weight: jax.Array,
  *,
  rank: int = 8,
  alpha: float = 16.0,
  dropout: float = 0.0,
  experts: int = 4,
  top_experts: int = 2,
) -> Mixture:
  """A as LoRA's, an expert's own; B = 0: the base's function, exactly.

  Args:
    key, weight, rank, alpha, dropout: as `lora.init`; the rank is an expert's.
    experts: E.
    top_experts: k, 1 to E.
  """
  if not 1 <= top_experts <= experts:
    raise ValueError(f'expected config.peft.top_experts from 1 to experts, found {top_experts} and '
                     f'{experts}; change either')
  lora.check(weight.shape, rank, dropout)
  *lead, rows, columns = weight.shape
  keys, bound = jax.random.split(key), rows**-0.5
  draw = lambda key, *shape: jax.random.uniform(key, (*lead, *shape), jnp.float32, -bound, bound)
  return Mixture(
    a=draw(keys[0], experts, rows, rank), b=jnp.zeros((*lead, experts, rank, columns), jnp.float32),
    router=draw(keys[1], rows, experts), balance=jnp.zeros((*lead, experts), jnp.float32),
    scale=jnp.full(lead, alpha / rank, jnp.float32), top_experts=top_experts, dropout=dropout)


def parameters(shape: tuple[int, ...], *, rank: int = 8, experts: int = 4) -> int:
  """E (r (I + O) + I + 1) a matrix."""
  *lead, rows, columns = shape
  return math.prod(lead) * experts * (rank * (rows + columns) + rows + 1)
