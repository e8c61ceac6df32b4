"""Attention over whole sequences, one function for every platform.

Axes: B batch, T queries, S keys, H query heads, G key heads, R = H / G, K head width.
Scores and softmax are fp32, the result has the type of the query.  A query that sees no key
(padding) gives zeros, and zero gradients.
"""

import math

import jax
import jax.numpy as jnp

from perl.models import blocked
from perl.models.blocked import HIDDEN, LOWEST, visible


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | jax.Array | None = None,
    softcap: float | None = None,
    offset: int = 0,
    segments: tuple[jax.Array, jax.Array] | None = None,
    lead: int = 0,
    impl: str = 'auto',
) -> jax.Array:
  """softmax(softcap(scale q k^T) where visible) v.

  Query t, whose index is i = offset + t, sees key j when mask[j], and j <= i if causal, and
  |i - j| < window if there is one, and both are of one segment if there are any.
  softcap(s) = softcap * tanh(s / softcap) (Gemma 2, arXiv:2408.00118, section 2).

  Args:
    q: f[B, T, H, K].
    k, v: f[B, S, G, K]; G divides H, head h reads key head h // (H / G).
    mask: bool[B, S], True for real keys; None where all are, or where no real query could see one
      that is not (rows that are padded on the right alone).
    scale: factor of the scores; None is 1 / sqrt(K).
    causal: query i sees no key beyond index i.
    window: sliding window in tokens, the query itself included; i32[] where layers differ.
    softcap: bound of the scores.
    offset: index of the first query among the keys (the length of what lies before the queries).
    segments: (i32[B, T] of the queries, i32[B, S] of the keys) of rows that hold several texts.
    lead: so many first keys (virtual tokens) are seen by every query where the mask has them,
      whatever window and segments say.
    impl: 'auto', 'reference' (the formula), 'blocked' (causal blocks, memory O(T); best on CPU),
      'xla' or 'cudnn' (jax.nn.dot_product_attention).  A softcap or a one-sided case that
      'xla' and 'cudnn' lack goes to 'reference'.

  Returns:
    f[B, T, H, K], type of q.

  Raises:
    ValueError: shapes that do not fit, or an unknown impl.
  """
  _check(q, k, v, mask)
  if scale is None:
    scale = 1.0 / math.sqrt(q.shape[-1])
  if impl == 'auto':
    impl = _choose(q, softcap)
  elif impl in ('xla', 'cudnn') and softcap is not None:
    impl = 'reference'
  options = (float(scale), bool(causal), window, softcap, offset, lead)
  if impl == 'reference':
    return _reference(q, k, v, mask, segments, *options)
  if impl == 'blocked':
    return _blocked(q, k, v, mask, segments, options)
  if impl in ('xla', 'cudnn'):
    return _library(q, k, v, mask, segments, scale, causal, window, offset, lead, impl)
  raise ValueError(
      f"impl: expected 'auto', 'reference', 'blocked', 'xla' or 'cudnn', found {impl!r};"
      " 'auto' picks the fastest for the platform.")


def _check(q, k, v, mask):
  if k.shape != v.shape or q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0]:
    raise ValueError(
        'attention: expected q [B, T, H, K] and k, v [B, S, G, K], found '
        f'{q.shape}, {k.shape}, {v.shape}; reshape the projections to heads first.')
  if q.shape[2] % k.shape[2] or q.shape[3] != k.shape[3]:
    raise ValueError(
        f'attention: expected key heads that divide {q.shape[2]} query heads of width '
        f'{q.shape[3]}, found {k.shape[2]} of width {k.shape[3]}; see heads, kv_heads, head_dim.')
  if mask is not None and mask.shape != k.shape[:2]:
    raise ValueError(
        f'attention: expected mask [B, S] = {k.shape[:2]}, found {mask.shape}; it marks the keys.')


def _choose(q: jax.Array, softcap: float | None) -> str:
  """The fastest implementation on the default backend that can do what is asked."""
  platform = jax.default_backend()
  if platform == 'cpu':
    return 'blocked'
  if softcap is not None:
    return 'reference'
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  fits = q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and q.shape[1] % 2 == 0
  return 'cudnn' if platform == 'gpu' and half and fits else 'xla'


def _seen(t, s, mask, segments, causal, window, offset, lead) -> jax.Array:
  """bool[B or 1, 1, t, s]: which keys each query sees."""
  seen = visible((offset, offset + t), (0, s), causal, window, lead)[None, None]
  if mask is not None:
    seen = seen & mask[:, None, None, :]
  if segments is not None:
    seen = seen & (
      (segments[0][:, None, :, None] == segments[1][:, None, None, :]) | (jnp.arange(s) < lead))
  return seen


def _reference(q, k, v, mask, segments, scale, causal, window, softcap, offset, lead):
  b, t, h, width = q.shape
  s, g = k.shape[1:3]
  grouped = q.reshape(b, t, g, h // g, width)
  scores = jnp.einsum('btgrk,bsgk->bgrts', grouped, k, preferred_element_type=jnp.float32) * scale
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  seen = _seen(t, s, mask, segments, causal, window, offset, lead)[:, :, None]
  scores = jnp.where(seen, scores, HIDDEN)
  top = jnp.maximum(scores.max(-1, keepdims=True), LOWEST)
  weights = jnp.exp(scores - jax.lax.stop_gradient(top))
  total = weights.sum(-1, keepdims=True)
  weights /= jnp.where(total > 0, total, 1.0)
  out = jnp.einsum('bgrts,bsgk->btgrk', weights.astype(v.dtype), v,
                   preferred_element_type=jnp.float32)
  return out.reshape(q.shape).astype(q.dtype)


def _blocked(q, k, v, mask, segments, options):
  """A window that only the running program knows is data: a row each, for rows come in groups."""
  scale, causal, window, softcap, offset, lead = options
  spans = None
  if isinstance(window, jax.Array):
    spans, window = jnp.broadcast_to(window, q.shape[:1]), None
  if spans is None and mask is None and segments is None:
    return blocked.attention(q, k, v, None, options)
  seen = blocked.Seen(mask, spans, *(segments or (None, None)))
  return blocked.attention(q, k, v, seen, (scale, causal, window, softcap, offset, lead))


def _library(q, k, v, mask, segments, scale, causal, window, offset, lead, impl):
  """jax.nn.dot_product_attention, with zeros where a query sees nothing."""
  t, s = q.shape[1], k.shape[1]
  known = mask is None and segments is None and not isinstance(window, jax.Array)
  if known and causal and offset == 0 and t == s:  # causality says all: flash kernels' own case
    sides = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
      q, k, v, scale=scale, is_causal=True, local_window_size=sides, implementation=impl)
  seen = _seen(t, s, mask, segments, causal, window, offset, lead)
  out = jax.nn.dot_product_attention(q, k, v, mask=seen, scale=scale, implementation=impl)
  return jnp.where(seen.any(-1).transpose(0, 2, 1)[..., None], out, 0)
