"""Attention over causal blocks, for CPU: memory O(T), and the scores of a block stay in the cache.

Axes as in `perl.models.attention`.  XLA's CPU products are faster as x.T @ y with a wide y than as
x @ y.T, so scores read feature-major operands, and dk, dv are accumulated feature-major.  XLA also
schedules all blocks side by side, which throws their scores out of the cache between one operation
and the next; a loop over groups of batch rows keeps them there.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# A hidden key has this score: far below any real one, and finite, so that no NaN can arise.
HIDDEN = -1e30
# Below every real score and above HIDDEN: exp(HIDDEN - LOWEST) is 0, also where nothing is seen.
LOWEST = -1e20
# Queries a block: fewer skip more of what no query sees, more make wider products. 128 was fastest.
BLOCK = 128
# Bytes of the scores of one block, all heads of the rows that a device works on at a time.
CACHED_BYTES = 2**20


def visible(
    queries: tuple[int, int], keys: tuple[int, int], causal: bool, window: int | jax.Array | None,
    lead: int = 0,
) -> jax.Array:
  """bool[..., t, s]: which of the keys [start, stop) each of the queries [start, stop) may see;
  the first `lead` keys of all are in no window.
  """
  i = jnp.arange(*queries)[:, None]
  j = jnp.arange(*keys)[None, :]
  seen = jnp.ones((i.shape[0], j.shape[1]), bool)
  if causal:
    seen &= j <= i
  if window is not None:
    seen = seen & ((jnp.abs(i - j) < window) | (j < lead))
  return seen


class Seen(NamedTuple):
  """What only the data say of who sees whom; rows lead, so that it is cut as the rows are."""

  mask: jax.Array | None = None  # bool[B, S]
  windows: jax.Array | None = None  # i32[B], where the window is data
  of_queries: jax.Array | None = None  # i32[B, T], segments
  of_keys: jax.Array | None = None  # i32[B, S]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen | None, options: tuple
) -> jax.Array:
  """`perl.models.attention.attention` with options (scale, causal, window, softcap, offset,
  lead).
  """
  return _forward(q, k, v, seen, options)[0]


def _forward(q, k, v, seen, options):
  outputs = _in_groups(functools.partial(_group_forward, options), q, k, v, seen)
  out, log_sum = checkpoint_name(outputs, 'attended')
  return out, (q, k, v, seen, out, log_sum)


def _backward(options, residuals, d_out):
  q, k, v, seen, out, log_sum = residuals
  group = functools.partial(_group_backward, options)
  return *_in_groups(group, q, k, v, seen, out, log_sum, d_out), None


attention.defvjp(_forward, _backward)


def _in_groups(function, q, k, *others):
  """function(q, k, *others) over groups of batch rows in turn.

  Row i is in group i mod n: a mesh shards contiguous rows, so a group lies on all of its devices.
  """
  rows, t, heads, _ = q.shape
  row_bytes = 4 * heads * min(BLOCK, t) * k.shape[1]
  fitting = max(1, CACHED_BYTES // row_bytes) * jax.device_count()
  groups = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= fitting)
  arguments = (q, k, *others)
  if groups == 1:
    return function(*arguments)
  cut = lambda x: x.reshape(rows // groups, groups, *x.shape[1:])
  split = jax.tree.map(cut, arguments)
  part = lambda i: jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, i, 1, keepdims=False), split)
  shapes = jax.eval_shape(lambda: function(*part(0)))

  def step(i, results):
    outputs = function(*part(i))
    return tuple(jax.lax.dynamic_update_index_in_dim(r, f, i, 1) for r, f in zip(results, outputs))

  empty = tuple(jnp.zeros((s.shape[0], groups, *s.shape[1:]), s.dtype) for s in shapes)
  results = jax.lax.fori_loop(0, groups, step, empty)
  return tuple(r.reshape(rows, *r.shape[2:]) for r in results)


def _blocks(t: int, s: int, causal: bool, window: int | None, offset: int, lead: int):
  """(query slice, key slice) of each block: only the keys that some query of it sees."""
  for start in range(0, t, BLOCK):
    stop = min(start + BLOCK, t)
    last = min(offset + stop, s) if causal else s
    if window is not None and not causal:
      last = min(s, offset + stop + window - 1)
    first = 0 if window is None or lead else min(max(0, offset + start - window + 1), last)
    yield slice(start, stop), slice(first, last)


def _hide(scores, seen, rows, keys, causal, window, offset, lead):
  """The scores f32[B, G, R, t, s] of a block, HIDDEN where a query does not see the key.

  Only what can hide something is looked at: with neither mask nor segments, the keys before the
  block's own are seen by all of it, and pass as they are.
  """
  if seen is None and window is None:
    if not causal or keys.stop <= offset + rows.start + 1:
      return scores
    own = min(keys.stop, max(keys.start, offset + rows.start))  # seen by all up to here
    ok = visible((offset + rows.start, offset + rows.stop), (own, keys.stop), True, None)
    hidden = jnp.where(ok, 0.0, HIDDEN)
    return scores + jnp.pad(hidden, ((0, 0), (own - keys.start, 0)))
  ok = jnp.ones((1, 1, 1, 1, 1), bool)
  seen = seen or Seen()
  if seen.mask is not None:
    ok = ok & seen.mask[:, None, None, None, keys]
  if seen.of_keys is not None:
    text = seen.of_queries[:, None, None, rows, None]
    same = text == seen.of_keys[:, None, None, None, keys]
    ok = ok & (same | (jnp.arange(keys.start, keys.stop) < lead) if lead else same)
  if causal or window is not None or seen.windows is not None:
    window = window if seen.windows is None else seen.windows[:, None, None, None, None]
    ok = ok & visible(
        (offset + rows.start, offset + rows.stop), (keys.start, keys.stop), causal, window, lead)
  return scores + jnp.where(ok, 0.0, HIDDEN)


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


def _group_forward(options, q, k, v, seen):
  scale, causal, window, softcap, offset, lead = options
  qh, kh, vh = _head_major(q, k, v, scale)
  outs, log_sums = [], []
  qf, kf = _feature_major(qh), _feature_major(kh)
  for rows, keys in _blocks(q.shape[1], k.shape[1], causal, window, offset, lead):
    scores, _ = _scores(qf[..., rows], kf[..., keys], softcap)
    scores = _hide(scores, seen, rows, keys, causal, window, offset, lead)
    top = jnp.maximum(scores.max(-1, keepdims=True), LOWEST)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum('bgrts,bgsk->bgrtk', weights.astype(v.dtype), vh[:, :, keys],
                     preferred_element_type=jnp.float32)
    empty = total == 0
    outs.append(out / jnp.where(empty, 1.0, total))
    log_sums.append(jnp.where(empty, 0.0, top + jnp.log(jnp.where(empty, 1.0, total))))
  return _token_major(jnp.concatenate(outs, 3), q.shape, q.dtype), jnp.concatenate(log_sums, 3)


def _group_backward(options, q, k, v, seen, out, log_sum, d_out):
  """Recomputes the weights from the saved log-sums (FlashAttention, arXiv:2205.14135, alg. 4)."""
  scale, causal, window, softcap, offset, lead = options
  qh, kh, vh = _head_major(q, k, v, scale)
  dh, _, _ = _head_major(d_out.astype(q.dtype), k, v, 1.0)
  oh, _, _ = _head_major(out, k, v, 1.0)
  inner = jnp.sum(dh.astype(jnp.float32) * oh, -1, keepdims=True)
  dq, dk = [], jnp.zeros((*kh.shape[:2], kh.shape[3], kh.shape[2]), jnp.float32)
  dv = jnp.zeros_like(dk)
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  qf, kf, vf, df = (_feature_major(x) for x in (qh, kh, vh, dh))
  for rows, keys in _blocks(q.shape[1], k.shape[1], causal, window, offset, lead):
    qb, db = qh[:, :, :, rows], dh[:, :, :, rows]
    scores, slope = _scores(qf[..., rows], kf[..., keys], softcap)
    scores = _hide(scores, seen, rows, keys, causal, window, offset, lead)
    weights = jnp.exp(scores - log_sum[:, :, :, rows])
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
  return dq, dk, dv
