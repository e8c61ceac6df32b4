"""Statistics over the entries where a mask counts. Nothing under the mask can change a result."""

import jax
import jax.numpy as jnp


def masked_sum(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
  """sum_i m_i x_i over `axis`; f32. Entries under the mask may be anything, NaN included."""
  return jnp.where(mask, x, 0.0).astype(jnp.float32).sum(axis)


def masked_mean(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
  """sum_i m_i x_i / sum_i m_i over `axis`, and 0 where the mask is empty; f32."""
  count = jnp.asarray(mask, jnp.float32).sum(axis)
  return masked_sum(x, mask, axis) / jnp.maximum(count, 1.0)


def masked_var(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
  """mean_i (x_i - mean)^2 over the counted entries (biased, so that one entry gives 0, not NaN)."""
  mean = masked_mean(x, mask, axis)
  if axis is not None:
    mean = jnp.expand_dims(mean, axis)
  return masked_mean(jnp.square(jnp.where(mask, x, 0.0) - mean), mask, axis)


def whiten(x: jax.Array, mask: jax.Array, *, shift_mean: bool = True) -> jax.Array:
  """(x - mean) rsqrt(var + 1e-8) over the counted entries, 0 elsewhere.

  Args:
    x: f32[...].
    mask: bool[...], of x's shape.
    shift_mean: with False the mean is added back, as is done for rewards, whose sign matters.
  """
  mean, var = masked_mean(x, mask), masked_var(x, mask)
  white = (x - mean) * jax.lax.rsqrt(var + 1e-8)
  return jnp.where(mask, white if shift_mean else white + mean, 0.0)


def last_index(mask: jax.Array) -> jax.Array:
  """i32[B]: the position of the last True of each row of bool[B, T] (0 for an empty row)."""
  length = mask.shape[-1]
  return jnp.where(mask, jnp.arange(length), 0).max(-1)


def after(mask: jax.Array, start: jax.Array) -> jax.Array:
  """bool[B, T]: the real tokens from column start i32[B] on: responses, in right-padded rows."""
  return mask & (jnp.arange(mask.shape[-1]) >= start[:, None])


def positions(mask: jax.Array) -> jax.Array:
  """i32[B, T]: cumsum(mask) - 1, the position of each real token among the real ones, at least 0.

  It comes from the mask and not from the index, so that left padding and right padding agree.
  """
  return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), -1) - 1, 0)
