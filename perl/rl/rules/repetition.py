"""How much a response repeats itself: with a negative weight, variety. Over tokens."""

import jax
import jax.numpy as jnp


def rewards(tokens: jax.Array, mask: jax.Array) -> jax.Array:
  """The share of a response's pairs of neighbours that occurred before in it, f32[B].

  Args:
    tokens: i32[B, R].
    mask: bool[B, R], the response's tokens.
  """
  pairs = jnp.stack([tokens[:, :-1], tokens[:, 1:]], -1)
  real = mask[:, :-1] & mask[:, 1:]
  same = (pairs[:, :, None] == pairs[:, None, :]).all(-1) & real[:, None, :]
  earlier = jnp.tril(jnp.ones(same.shape[1:], bool), -1)
  repeated = (same & earlier).any(-1) & real
  return repeated.sum(-1) / jnp.maximum(real.sum(-1), 1)
