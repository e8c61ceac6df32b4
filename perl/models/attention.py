"""Attention over whole sequences and over a KV cache, one function for every platform.

Axes: B batch, T queries, S keys, H query heads, G key heads, R = H / G, K head width.
Scores and softmax are fp32, the result has the type of the query.  A query that sees no key
(padding) gives zeros, and zero gradients.
"""

import functools
import math

import jax
import jax.numpy as jnp

# A hidden key has this score: far below any real one, and finite, so that no NaN can arise.
HIDDEN = -1e30
# Below every real score and above HIDDEN: exp(HIDDEN - LOWEST) is 0, also where nothing is seen.
LOWEST = -1e20
# Queries a block: at 64 the scores of one head stay in the cache of a core.
BLOCK = 64


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    impl: str = 'auto',
) -> jax.Array:
  """softmax(softcap(scale q k^T) where visible) v.

  Query i sees key j when mask[j], and j <= i if causal, and |i - j| < window if there is one.
  softcap(s) = softcap * tanh(s / softcap) (Gemma 2, arXiv:2408.00118, section 2).

  Args:
    q: f[B, T, H, K].
    k, v: f[B, S, G, K]; G divides H, head h reads key head h // (H / G).
    mask: bool[B, S], True for real keys.
    scale: factor of the scores; None is 1 / sqrt(K).
    causal: query i sees no key beyond index i.
    window: sliding window in tokens, the query itself included.
    softcap: bound of the scores.
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
  options = (float(scale), bool(causal), window, softcap)
  if impl == 'reference':
    return _reference(q, k, v, mask, *options)
  if impl == 'blocked':
    return _blocked(q, k, v, mask, options)
  if impl in ('xla', 'cudnn'):
    return _library(q, k, v, mask, scale, causal, window, impl)
  raise ValueError(
      f"impl: expected 'auto', 'reference', 'blocked', 'xla' or 'cudnn', found {impl!r};"
      " 'auto' picks the fastest for the platform."
  )


def decode_attention(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    mask: jax.Array,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
  """Attention of one new token over a cache.

  Args:
    q: f[B, 1, H, K].
    k_cache, v_cache: f[B, S, G, K]; slots that hold nothing yet are hidden by the mask.
    mask: bool[B, S], the slots that this token sees (a sliding window goes in here).
    scale, softcap: as in `attention`.

  Returns:
    f[B, 1, H, K], type of q.
  """
  return attention(
      q, k_cache, v_cache, mask, scale=scale, causal=False, softcap=softcap, impl='reference'
  )


def visible(
    queries: tuple[int, int], keys: tuple[int, int], causal: bool, window: int | None
) -> jax.Array:
  """bool[t, s]: which of the keys [start, stop) each of the queries [start, stop) may see."""
  i = jnp.arange(*queries)[:, None]
  j = jnp.arange(*keys)[None, :]
  seen = jnp.ones((i.shape[0], j.shape[1]), bool)
  if causal:
    seen &= j <= i
  if window is not None:
    seen &= jnp.abs(i - j) < window
  return seen


def _check(q, k, v, mask):
  if k.shape != v.shape or q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0]:
    raise ValueError(
        'attention: expected q [B, T, H, K] and k, v [B, S, G, K], found '
        f'{q.shape}, {k.shape}, {v.shape}; reshape the projections to heads first.'
    )
  if q.shape[2] % k.shape[2] or q.shape[3] != k.shape[3]:
    raise ValueError(
        f'attention: expected key heads that divide {q.shape[2]} query heads of width '
        f'{q.shape[3]}, found {k.shape[2]} of width {k.shape[3]}; see heads, kv_heads, head_dim.'
    )
  if mask.shape != k.shape[:2]:
    raise ValueError(
        f'attention: expected mask [B, S] = {k.shape[:2]}, found {mask.shape}; it marks the keys.'
    )


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


def _reference(q, k, v, mask, scale, causal, window, softcap):
  b, t, h, width = q.shape
  s, g = k.shape[1:3]
  grouped = q.reshape(b, t, g, h // g, width)
  scores = jnp.einsum('btgrk,bsgk->bgrts', grouped, k, preferred_element_type=jnp.float32) * scale
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  seen = visible((0, t), (0, s), causal, window) & mask[:, None, None, None, :]
  scores = jnp.where(seen, scores, HIDDEN)
  top = jnp.maximum(scores.max(-1, keepdims=True), LOWEST)
  weights = jnp.exp(scores - jax.lax.stop_gradient(top))
  total = weights.sum(-1, keepdims=True)
  weights /= jnp.where(total > 0, total, 1.0)
  out = jnp.einsum('bgrts,bsgk->btgrk', weights.astype(v.dtype), v,
                   preferred_element_type=jnp.float32)
  return out.reshape(q.shape).astype(q.dtype)


def _library(q, k, v, mask, scale, causal, window, impl):
  """jax.nn.dot_product_attention, with zeros where a query sees nothing."""
  t, s = q.shape[1], k.shape[1]
  seen = visible((0, t), (0, s), causal, window) & mask[:, None, None, :]
  out = jax.nn.dot_product_attention(q, k, v, mask=seen, scale=scale, implementation=impl)
  return jnp.where(seen.any(-1).transpose(0, 2, 1)[..., None], out, 0)


# Blocked attention.  XLA's CPU products run 1.7 times faster as x.T @ y with a wide y than as
# x @ y.T, so scores read feature-major operands, and dk, dv are accumulated feature-major.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocked(q, k, v, mask, options):
  return _blocked_forward(q, k, v, mask, options)[0]


def _blocks(t: int, s: int, causal: bool, window: int | None):
  """(query slice, key slice) of each block: only the keys that some query of it sees."""
  for start in range(0, t, BLOCK):
    stop = min(start + BLOCK, t)
    last = min(stop, s) if causal else s
    if window is not None and not causal:
      last = min(s, stop + window - 1)
    first = 0 if window is None else min(max(0, start - window + 1), last)
    yield slice(start, stop), slice(first, last)


def _hidden(mask, rows, keys, causal, window):
  """f32[B, 1, 1, t, s] (or [B, 1, 1, 1, s]) to add to the scores: 0 where seen, else HIDDEN."""
  seen = mask[:, None, None, None, keys]
  if causal or window is not None:
    seen = seen & visible((rows.start, rows.stop), (keys.start, keys.stop), causal, window)
  return jnp.where(seen, 0.0, HIDDEN)


def _scores(q, k, softcap):
  """Scores of q [B, G, K, R, t] and k [B, G, K, s], bent, and the slope of the softcap or None."""
  scores = jnp.einsum('bgkrt,bgks->bgrts', q, k, preferred_element_type=jnp.float32)
  if softcap is None:
    return scores, None
  bent = jnp.tanh(scores / softcap)
  return softcap * bent, 1.0 - bent**2


def _head_major(q, k, v, scale):
  b, t, h, width = q.shape
  g = k.shape[2]
  q = (q * jnp.asarray(scale, q.dtype)).reshape(b, t, g, h // g, width)
  return q.transpose(0, 2, 3, 1, 4), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


def _feature_major(x):
  """[B, G, R, T, K] -> [B, G, K, R, T]; [B, G, S, K] -> [B, G, K, S]."""
  return x.transpose(0, 1, 4, 2, 3) if x.ndim == 5 else x.transpose(0, 1, 3, 2)


def _token_major(x, shape, dtype):
  """[B, G, R, T, K] -> [B, T, H, K]."""
  return x.transpose(0, 3, 1, 2, 4).reshape(shape).astype(dtype)


def _blocked_forward(q, k, v, mask, options):
  scale, causal, window, softcap = options
  qh, kh, vh = _head_major(q, k, v, scale)
  outs, log_sums = [], []
  qf, kf = _feature_major(qh), _feature_major(kh)
  for rows, keys in _blocks(q.shape[1], k.shape[1], causal, window):
    scores, _ = _scores(qf[..., rows], kf[..., keys], softcap)
    scores += _hidden(mask, rows, keys, causal, window)
    top = jnp.maximum(scores.max(-1, keepdims=True), LOWEST)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum('bgrts,bgsk->bgrtk', weights.astype(v.dtype), vh[:, :, keys],
                     preferred_element_type=jnp.float32)
    empty = total == 0
    outs.append(out / jnp.where(empty, 1.0, total))
    log_sums.append(jnp.where(empty, 0.0, top + jnp.log(jnp.where(empty, 1.0, total))))
  out = _token_major(jnp.concatenate(outs, 3), q.shape, q.dtype)
  return out, (q, k, v, mask, out, jnp.concatenate(log_sums, 3))


def _blocked_backward(options, residuals, d_out):
  """Recomputes the weights from the saved log-sums (FlashAttention, arXiv:2205.14135, alg. 4)."""
  scale, causal, window, softcap = options
  q, k, v, mask, out, log_sum = residuals
  qh, kh, vh = _head_major(q, k, v, scale)
  dh, _, _ = _head_major(d_out.astype(q.dtype), k, v, 1.0)
  oh, _, _ = _head_major(out, k, v, 1.0)
  inner = jnp.sum(dh.astype(jnp.float32) * oh, -1, keepdims=True)
  dq, dk = [], jnp.zeros((*kh.shape[:2], kh.shape[3], kh.shape[2]), jnp.float32)
  dv = jnp.zeros_like(dk)
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  qf, kf, vf, df = (_feature_major(x) for x in (qh, kh, vh, dh))
  for rows, keys in _blocks(q.shape[1], k.shape[1], causal, window):
    qb, db = qh[:, :, :, rows], dh[:, :, :, rows]
    scores, slope = _scores(qf[..., rows], kf[..., keys], softcap)
    hidden = _hidden(mask, rows, keys, causal, window)
    weights = jnp.exp(scores + hidden - log_sum[:, :, :, rows])
    d_weights = product('bgkrt,bgks->bgrts', df[..., rows], vf[..., keys])
    d_scores = weights * (d_weights - inner[:, :, :, rows])
    if slope is not None:
      d_scores *= slope
    weights, d_scores = weights.astype(v.dtype), d_scores.astype(q.dtype)
    dv = dv.at[..., keys].add(product('bgrts,bgrtk->bgks', weights, db))
    dk = dk.at[..., keys].add(product('bgrts,bgrtk->bgks', d_scores, qb))
    dq.append(product('bgrts,bgsk->bgrtk', d_scores, kh[:, :, keys]) * scale)
  dq = _token_major(jnp.concatenate(dq, 3), q.shape, q.dtype)
  dk, dv = (x.transpose(0, 3, 1, 2).astype(y.dtype) for x, y in ((dk, k), (dv, v)))
  return dq, dk, dv, None


_blocked.defvjp(_blocked_forward, _blocked_backward)
