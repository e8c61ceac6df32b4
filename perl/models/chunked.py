"""A function of each position's hidden state, a chunk of positions at a time.

The backward pass of log-probs over a large vocabulary is a third pass over the logits where they
are computed again. Each log-prob depends on its own hidden state alone, so where the unembedding is
frozen the forward pass forms d logprob / d h as well, while the logits are there, and the backward
pass is one product with the incoming gradient.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perl.types import Tree

CHUNK_ELEMENTS = 2**23
"""Logits held at once: 32 MiB in float32."""

RowFunction = Callable[[Tree, jax.Array, jax.Array], jax.Array]
"""(parameters, h [B, t, D], targets [B, t, ...]) -> [B, t], each entry of its own h."""


def rowwise(
  function: RowFunction, parameters: Tree, h: jax.Array, targets: jax.Array, vocab_size: int, *,
  frozen: bool,
) -> jax.Array:
  """f32[B, T]: function(parameters, h, targets), with [B, T, V] never whole.

  Args:
    function: see RowFunction.
    parameters: what it reads.
    h: f[B, T, D].
    targets: [B, T, ...]; no gradient flows to them.
    vocab_size: V, for the size of a chunk.
    frozen: the parameters are not trained: no gradient is formed for them.
  """
  if frozen:
    return _frozen(function, vocab_size, parameters, h, targets)
  again = jax.checkpoint(lambda h, targets: function(parameters, h, targets))
  return _over_chunks(again, vocab_size, h, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _frozen(function, vocab_size, parameters, h, targets):
  return _over_chunks(lambda h, t: function(parameters, h, t), vocab_size, h, targets)


def _forward(function, vocab_size, parameters, h, targets):
  def with_slope(h, targets):
    out, pull = jax.vjp(lambda h: function(parameters, h, targets), h)
    return out, pull(jnp.ones_like(out))[0]

  return _over_chunks(with_slope, vocab_size, h, targets)


def _backward(function, vocab_size, slope, d_out):
  return None, (d_out[..., None] * slope.astype(jnp.float32)).astype(slope.dtype), None


_frozen.defvjp(_forward, _backward)


def _over_chunks(function, vocab_size: int, h: jax.Array, targets: jax.Array):
  """function(h [B, t, D], targets [B, t, ...]) -> tree of [B, t, ...], over all t."""
  batch, length = targets.shape[:2]
  size = min(length, max(1, CHUNK_ELEMENTS // (batch * vocab_size)))
  if size == length:
    return function(h, targets)
  chunks = -(-length // size)
  pad = chunks * size - length
  cut = lambda x: jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2))).reshape(
    batch, chunks, size, *x.shape[2:]).swapaxes(0, 1)
  _, out = jax.lax.scan(lambda _, x: (None, function(*x)), None, (cut(h), cut(targets)))
  whole = lambda x: x.swapaxes(0, 1).reshape(batch, chunks * size, *x.shape[3:])[:, :length]
  return jax.tree.map(whole, out)
