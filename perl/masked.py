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


def largest(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
  """max_i x_i over the counted entries, 0 where there is none; the axis stays, of size 1; f32."""
  top = jnp.where(mask, x.astype(jnp.float32), -jnp.inf).max(axis, keepdims=True)
  return jnp.where(jnp.isfinite(top), top, 0.0)


def centred(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
  """x - mean over the counted entries, 0 elsewhere; of x's shape, f32.

  Exactly 0 where all counted entries are equal, and exact to rounding however far from 0 they lie:
  the largest is taken from them before they are summed, (x - max) - mean(x - max).
  """
  below = jnp.where(mask, x - largest(x, mask, axis), 0.0)
  mean = masked_mean(below, mask, axis)
  mean = mean if axis is None else jnp.expand_dims(mean, axis)
  return jnp.where(mask, below - mean, 0.0)


def masked_var(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
  """mean_i (x_i - mean)^2 over the counted entries (biased, so that one entry gives 0, not NaN)."""
  return masked_mean(jnp.square(centred(x, mask, axis)), mask, axis)


def whiten(x: jax.Array, mask: jax.Array, *, shift_mean: bool = True) -> jax.Array:
  """(x - mean) rsqrt(var + 1e-8) over the counted entries, 0 elsewhere; 0 too where all are equal.

  Args:
    x: f32[...].
    mask: bool[...], of x's shape.
    shift_mean: with False the mean is added back, as is done for rewards, whose sign matters.
  """
  white = centred(x, mask) * jax.lax.rsqrt(masked_var(x, mask) + 1e-8)
  return jnp.where(mask, white if shift_mean else white + masked_mean(x, mask), 0.0)


def last_index(mask: jax.Array) -> jax.Array:
  """i32[B]: the position of the last True of each row of bool[B, T] (0 for an empty row)."""
  length = mask.shape[-1]
  return jnp.where(mask, jnp.arange(length), 0).max(-1)


def unlike(tokens: jax.Array, ids: jax.Array | None) -> jax.Array | bool:
  """bool[B, T]: where a token i32[B, T] is none of ids i32[K]; True without any."""
  return True if ids is None else ~jnp.isin(tokens, ids)


def after(mask: jax.Array, start: jax.Array) -> jax.Array:
  """bool[B, T]: the real tokens from column start i32[B] on: responses, in right-padded rows."""
  return mask & (jnp.arange(mask.shape[-1]) >= start[:, None])


def positions(mask: jax.Array) -> jax.Array:
  """i32[B, T]: cumsum(mask) - 1, the position of each real token among the real ones, at least 0.

  It comes from the mask and not from the index, so that left padding and right padding agree.
  """
  return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), -1) - 1, 0)
