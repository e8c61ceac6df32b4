"""Losses of policies on experience of a slightly older policy, and how tokens become one number.

rho_t = pi(a_t | x_t) / pi_old(a_t | x_t). All losses are elementwise, f32[B, T], for `aggregate`;
no gradient flows through advantages or old log-probs.
"""

import jax
import jax.numpy as jnp

from perl import masked
from perl.types import Mean

LEVELS = ('token', 'response', 'sequence')
LARGEST_LOG_RATIO = 20.0
"""|log rho| is held to it, nats: e^20 is far outside every clip, and its products stay finite."""
AGGREGATIONS = ('token', 'sequence', 'sequence_sum', 'constant')


def ratios(
  logprobs: jax.Array, behaviour: jax.Array, mask: jax.Array, *, level: str = 'token'
) -> jax.Array:
  """rho, f32[B, T]: 1 outside the mask, and everywhere at the first update.

  Beyond LARGEST_LOG_RATIO, of whatever level, rho stays at its bound, without gradient.

  Args:
    logprobs: f32[B, T], of the policy that learns.
    behaviour: f32[B, T], of the policy that sampled.
    mask: bool[B, T], the response's tokens.
    level: of LEVELS. 'token'; or one ratio at all tokens of a response: 'response', the product of
      its tokens' (RLOO), or 'sequence', their geometric mean (GSPO: Zheng et al. 2025, arXiv
      2507.18071).

  Raises:
    ValueError: another level.
  """
  if level not in LEVELS:
    raise ValueError(f'expected ratios of a level among {", ".join(LEVELS)}, found {level!r}')
  difference = jnp.where(mask, logprobs - jax.lax.stop_gradient(behaviour), 0.0)
  if level != 'token':
    over = masked.masked_sum if level == 'response' else masked.masked_mean
    difference = jnp.where(mask, over(difference, mask, axis=-1)[:, None], 0.0)
  return jnp.exp(jnp.clip(difference, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))


CORRECTIONS = ('none', 'token_truncate', 'token_mask', 'sequence_truncate', 'sequence_mask')


def correction(
  logprobs: jax.Array, sampler: jax.Array, mask: jax.Array, *, how: str, cap: float
) -> jax.Array:
  """w = pi_old / pi_sampler, f32[B, T], for the loss of each token; no gradient flows through it.

  The sampler computes as the trainer does but for narrower types, caches or merged weights, and so
  is a policy of its own: a mean over its samples is one over the trainer's where each is weighed by
  w. What is beyond the cap is cut to it ('truncate') or has the weight 0 ('mask'); of a token, or
  of the whole response at all its tokens ('sequence'). As in TRL's GRPO (Yao et al. 2025, "Your
  efficient RL framework secretly brings you off-policy RL training").

  Args:
    logprobs: f32[B, T], of the trainer's forward pass, before the first update.
    sampler: f32[B, T], as sampled.
    mask: bool[B, T], the response's tokens.
    how: of CORRECTIONS; 'none' is 1 everywhere.
    cap: C, above 1.

  Raises:
    ValueError: another way.
  """
  if how not in CORRECTIONS:
    raise ValueError(f'expected a correction among {", ".join(CORRECTIONS)}, found {how!r}')
  if how == 'none':
    return jnp.ones(mask.shape)
  level, _, bound = how.partition('_')
  w = ratios(jax.lax.stop_gradient(logprobs), sampler, mask,
             level='token' if level == 'token' else 'response')
  return jnp.minimum(w, cap) if bound == 'truncate' else jnp.where(w > cap, 0.0, w)


def clipped(
  rho: jax.Array, advantages: jax.Array, *, low: float = 0.2, high: float | None = None,
  dual: float | None = None,
) -> jax.Array:
  """max(-A rho, -A clip(rho, 1 - low, 1 + high)), elementwise (PPO: Schulman et al. 2017, eq. 7).

  Args:
    rho: f32[...], see `ratios`.
    advantages: f32[...], A; 0 outside the mask.
    low: epsilon below 1.
    high: epsilon above 1; None is `low`. Larger, it is DAPO's clip-higher (arXiv 2503.14476).
    dual: c > 1: where A < 0 the loss is at most -c A (Ye et al. 2020, arXiv 1912.09729).
  """
  advantages = jax.lax.stop_gradient(advantages)
  bounded = jnp.clip(rho, 1.0 - low, 1.0 + (low if high is None else high))
  loss = jnp.maximum(-advantages * rho, -advantages * bounded)
  if dual is not None:
    loss = jnp.where(advantages < 0, jnp.minimum(loss, -dual * advantages), loss)
  return loss


def clip_fraction(
  rho: jax.Array, advantages: jax.Array, *, low: float = 0.2, high: float | None = None
) -> jax.Array:
  """1 where `clipped` has no gradient because of its clip, elementwise; a metric."""
  above, below = rho > 1.0 + (low if high is None else high), rho < 1.0 - low
  stopped = (above & (advantages > 0)) | (below & (advantages < 0))
  return stopped.astype(jnp.float32)


def cispo(
  logprobs: jax.Array, rho: jax.Array, advantages: jax.Array, *, high: float, low: float = 1.0
) -> jax.Array:
  """-sg(clip(rho, 1 - low, 1 + high)) A log pi, elementwise: no token loses its gradient.

  CISPO (MiniMax-M1, arXiv 2506.13585); with low = 1 the weight is bounded above alone.
  """
  weight = jax.lax.stop_gradient(jnp.clip(rho, 1.0 - low, 1.0 + high) * advantages)
  return -weight * logprobs


def clipped_value(
  values: jax.Array, old_values: jax.Array, returns: jax.Array, *, clip: float | None = 0.2
) -> jax.Array:
  """max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2) / 2, elementwise.

  PPO's value loss as in published code (Schulman's baselines); clip None leaves the bound out.
  """
  returns = jax.lax.stop_gradient(returns)
  loss = jnp.square(values - returns)
  if clip is not None:
    old_values = jax.lax.stop_gradient(old_values)
    bounded = jnp.clip(values, old_values - clip, old_values + clip)
    loss = jnp.maximum(loss, jnp.square(bounded - returns))
  return loss / 2


def aggregate(
  losses: jax.Array, mask: jax.Array, weight: jax.Array, *, how: str, tokens: int = 0
) -> Mean:
  """One Mean of elementwise losses; its weights add over microbatches, so that it divides once.

    token          sum / number of tokens               (DAPO: long responses count for more)
    sequence       mean over rows of the mean over tokens           (GRPO)
    sequence_sum   mean over rows of the sum over tokens            (REINFORCE, RLOO)
    constant       mean over rows of the sum over tokens / `tokens` (Dr. GRPO)

  Args:
    losses: f32[B, T]; anything outside the mask.
    mask: bool[B, T].
    weight: f32[B], 0 for filler rows.
    how: of AGGREGATIONS.
    tokens: the constant: the longest response that there can be.

  Raises:
    ValueError: another name, or a constant below 1.
  """
  if how not in AGGREGATIONS:
    raise ValueError(f'expected an aggregation among {", ".join(AGGREGATIONS)}, found {how!r}')
  if how == 'constant' and tokens < 1:
    raise ValueError(f'expected the longest response to divide by, found {tokens}')
  if how == 'token':
    return Mean.of(losses, mask * weight[:, None])
  if how == 'sequence':
    return Mean.of(masked.masked_mean(losses, mask, axis=-1), weight)
  total = masked.masked_sum(losses, mask, axis=-1)
  return Mean.of(total / (tokens if how == 'constant' else 1), weight)


def overlong_penalty(lengths: jax.Array, *, longest: int, buffer: int) -> jax.Array:
  """f32[B], of 0 to -1: what DAPO adds to the reward of a long response (arXiv 2503.14476).

  0 up to longest - buffer tokens, then falling evenly to -1 at `longest`, and -1 beyond.
  """
  return -jnp.clip((lengths - (longest - buffer)) / buffer, 0.0, 1.0)
