"""Advantages: how much better than expected. All are computed once, under stop-gradient.

Scores are f32[B], one a response; the k responses to a prompt lie in k rows on end (a group).
"""

import jax
import jax.numpy as jnp

from perl import masked

SCALES = ('group', 'batch', 'none')
"""By the standard deviation of what the advantages of responses to a prompt are divided."""


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

  Exactly 0 where all of a group are equal.

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
  over = lambda x: x.reshape(-1, samples or len(x))
  others = lambda x: x.sum(-1, keepdims=True) - x
  count = others(over(weight))
  top = masked.largest(over(scores), over(weight) > 0, -1)  # equal scores have it as their mean
  below = jnp.where(over(weight) > 0, over(scores) - top, 0.0) * over(weight)
  mean = top + others(below) / jnp.maximum(count, 1.0)
  return jnp.where(count > 0, mean, 0.0).reshape(-1)


def group_relative(
  scores: jax.Array, weight: jax.Array, *, samples: int, scale: str = 'group', eps: float = 1e-4
) -> jax.Array:
  """(R_i - mean) / (std + eps) within a group, f32[B] (GRPO: Shao et al. 2024, arXiv 2402.03300).

  The deviation is that of a sample (k - 1 below the line), as in published code. A group whose
  scores are all the same has the advantage 0 exactly, and no gradient.

  Args:
    scores, weight, samples: see `leave_one_out`.
    scale: of SCALES: divide by the deviation within the 'group', by that of all scores of the
      'batch' (arXiv 2508.08221), or by nothing ('none'; Dr. GRPO: Liu et al. 2025, 2503.20783).
    eps: added to the deviation.

  Raises:
    ValueError: a group of one, or another scale.
  """
  if scale not in SCALES:
    raise ValueError(f'expected rl.scale_rewards among {", ".join(SCALES)}, found {scale!r}')
  counted = _counted(weight, samples)
  error = masked.centred(scores.reshape(-1, samples), counted, -1)
  if scale != 'none':
    axis = -1 if scale == 'group' else None
    squares = jnp.square(error if scale == 'group' else masked.centred(scores, weight > 0))
    others = counted.sum(axis, keepdims=True) - 1.0
    error = error / (jnp.sqrt(squares.sum(axis, keepdims=True) / jnp.maximum(others, 1.0)) + eps)
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
