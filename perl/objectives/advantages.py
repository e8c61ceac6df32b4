"""Advantages: how much better than expected. All are computed once, under stop-gradient.

Scores are f32[B], one a response; the k responses to a prompt lie in k rows on end (a group).
"""

import jax
import jax.numpy as jnp

from perl import masked


def gae(
  rewards: jax.Array, values: jax.Array, mask: jax.Array, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[jax.Array, jax.Array]:
  """Generalized advantage estimation (Schulman et al. 2016, arXiv 1506.02438).

  delta_t = r_t + gamma V_{t+1} - V_t,  A_t = delta_t + gamma lambda A_{t+1},  R_t = A_t + V_t,
  with V and A zero beyond the last token.

  Args:
    rewards, values: f32[B, T]; values[b, t] = V(tokens[b, :t]).
    mask: bool[B, T], one run of True a row.
    gamma: discount.
    lam: lambda; 1 gives return - value, 0 the one-step error.

  Returns:
    (advantages, returns), f32[B, T], 0 outside the mask. Whiten the advantages only: the returns
    are of the advantages as they are.
  """
  rewards, values = (jnp.where(mask, x, 0.0).astype(jnp.float32) for x in (rewards, values))
  following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
  deltas = jnp.where(mask, rewards + gamma * following - values, 0.0)

  def back(later, delta):
    now = delta + gamma * lam * later
    return now, now

  _, sums = jax.lax.scan(back, jnp.zeros(rewards.shape[0]), deltas.T, reverse=True)
  advantages = jnp.where(mask, sums.T, 0.0)
  return advantages, jnp.where(mask, advantages + values, 0.0)


def leave_one_out(scores: jax.Array, weight: jax.Array, *, samples: int) -> jax.Array:
  """A_i = R_i - (sum_j R_j - R_i) / (k - 1), f32[B] (RLOO: Ahmadian et al. 2024, arXiv 2402.14740).

  Args:
    scores: f32[B].
    weight: f32[B], 0 for filler rows, which are nobody's baseline and have the advantage 0.
    samples: k, at least 2.

  Raises:
    ValueError: a group of one.
  """
  counted = _counted(weight, samples)
  compared = (counted & (counted.sum(-1, keepdims=True) > 1)).reshape(-1)
  return jnp.where(compared, scores - others_mean(scores, weight, samples=samples), 0.0)


def others_mean(scores: jax.Array, weight: jax.Array, *, samples: int = 0) -> jax.Array:
  """f32[B]: the mean over the *other* rows of a group; 0 where there is none.

  Args:
    scores: f32[B].
    weight: f32[B], 0 for filler rows, which may hold anything.
    samples: rows on end that are a group; 0 is all rows.
  """
  scores = jnp.where(weight > 0, scores, 0.0) * weight
  over = lambda x: x.reshape(-1, samples or len(x))
  others = lambda x: (over(x).sum(-1, keepdims=True) - over(x)).reshape(-1)
  return others(scores) / jnp.maximum(others(weight), 1.0)


def group_relative(
  scores: jax.Array, weight: jax.Array, *, samples: int, scale: bool = True, eps: float = 1e-4
) -> jax.Array:
  """(R_i - mean) / (std + eps) within a group, f32[B] (GRPO: Shao et al. 2024, arXiv 2402.03300).

  The deviation is that of a sample (k - 1 below the line), as in published code. A group whose
  scores are all the same has the advantage 0, and no gradient.

  Args:
    scores, weight, samples: see `leave_one_out`.
    scale: divide by the deviation; Dr. GRPO (Liu et al. 2025, arXiv 2503.20783) does not.
    eps: added to the deviation.

  Raises:
    ValueError: a group of one.
  """
  scores, weight = _groups(scores, weight, samples)
  count = weight.sum(-1, keepdims=True)
  error = scores - scores.sum(-1, keepdims=True) / jnp.maximum(count, 1.0)
  error = jnp.where(weight > 0, error, 0.0)
  if scale:
    variance = jnp.square(error).sum(-1, keepdims=True) / jnp.maximum(count - 1.0, 1.0)
    error = error / (jnp.sqrt(variance) + eps)
  return error.reshape(-1)


def informative(scores: jax.Array, weight: jax.Array, *, samples: int) -> jax.Array:
  """bool[B]: the rows of groups whose scores differ, which alone teach a group-relative policy.

  What dynamic sampling keeps (DAPO: Yu et al. 2025, arXiv 2503.14476).
  """
  counted = _counted(weight, samples)
  grouped = scores.reshape(-1, samples)
  least = jnp.where(counted, grouped, jnp.inf).min(-1, keepdims=True)
  most = jnp.where(counted, grouped, -jnp.inf).max(-1, keepdims=True)
  return (counted & (most > least)).reshape(-1)


def per_token(advantages: jax.Array, mask: jax.Array) -> jax.Array:
  """f32[B, T]: a response's advantage at each of its tokens.

  Args:
    advantages: f32[B].
    mask: bool[B, T], the response's tokens.
  """
  return jnp.where(mask, advantages[:, None], 0.0)


def whitened_returns(returns: jax.Array, mask: jax.Array) -> jax.Array:
  """(Z - mean) rsqrt(var + 1e-8) over all tokens of the batch (REINFORCE++, arXiv 2501.03262)."""
  return masked.whiten(returns, mask)


def _counted(weight: jax.Array, samples: int) -> jax.Array:
  if samples < 2:
    raise ValueError(f'expected at least 2 responses to a prompt, found {samples}: a group of one '
                     'has nothing to compare with; set rl.samples')
  return weight.reshape(-1, samples) > 0


def _groups(scores: jax.Array, weight: jax.Array, samples: int) -> tuple[jax.Array, jax.Array]:
  """(scores, 1 or 0), f32[B / k, k]; what lies in a filler row counts for nothing."""
  counted = _counted(weight, samples)
  grouped = scores.astype(jnp.float32).reshape(-1, samples)
  return jnp.where(counted, grouped, 0.0), counted.astype(jnp.float32)
