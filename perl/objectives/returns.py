"""Rewards, returns and baselines of policy gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from perl import masked
from perl.objectives import advantages, regularizers


def shaped_rewards(
  scores: jax.Array,
  logprobs: jax.Array,
  reference_logprobs: jax.Array,
  mask: jax.Array,
  *,
  beta: float,
  penalty: Callable[[jax.Array, jax.Array], jax.Array] = regularizers.kl,
) -> jax.Array:
  """f32[B, T]: (1 - beta) r at the last response token, minus beta times a penalty at each token.

  With the penalty k1 = log pi - log pi_ref, their sum over t has the expectation
  (1 - beta) r - beta KL(pi || anchor) (PERL, sec. 3), because k1 is unbiased for the KL as a
  *reward* (as a loss it has gradient zero).

  Args:
    scores: f32[B], the reward model's r.
    logprobs: f32[B, T], of the policy that sampled.
    reference_logprobs: f32[B, T], of the anchor.
    mask: bool[B, T], the response's tokens.
    beta: weight of the penalty, in [0, 1].
    penalty: of objectives.regularizers.SAMPLED.
  """
  held = lambda x: jnp.where(mask, x, 0.0)  # before the penalty, which may square or exponentiate
  lost = held(penalty(held(logprobs), held(reference_logprobs)))
  last = masked.last_index(mask)
  at_last = jax.nn.one_hot(last, mask.shape[-1], dtype=jnp.float32)
  terminal = jnp.where(mask, at_last * scores.astype(jnp.float32)[:, None], 0.0)
  return (1.0 - beta) * terminal - beta * lost


def returns_to_go(rewards: jax.Array, mask: jax.Array, *, gamma: float = 1.0) -> jax.Array:
  """Z_t = r_t + gamma Z_{t+1} over the masked tokens, f32[B, T]; 0 elsewhere.

  Args:
    rewards: f32[B, T].
    mask: bool[B, T], one run of True per row.
    gamma: discount; PERL's is 1.
  """
  rewards = jnp.where(mask, rewards, 0.0)

  def back(following, now):
    following = now + gamma * following
    return following, following

  _, out = jax.lax.scan(back, jnp.zeros(rewards.shape[0]), rewards.T, reverse=True)
  return jnp.where(mask, out.T, 0.0)


def others_baseline(
  returns: jax.Array, mask: jax.Array, weight: jax.Array, *, samples: int = 0
) -> jax.Array:
  """f32[B, T]: the mean over the *other* rows of their whole return, for every token of a row.

  Leaving the row itself out keeps the gradient unbiased. A single row has the baseline 0.

  Args:
    returns: f32[B, T], to go.
    mask: bool[B, T], the response's tokens.
    weight: f32[B], 0 for filler rows.
    samples: rows on end that are compared, the responses to one prompt (RLOO: Ahmadian et al.
      2024, arXiv 2402.14740); 0 compares all rows.
  """
  baseline = advantages.others_mean(_whole(returns, mask), weight, samples=samples)
  return jnp.where(mask, baseline[:, None], 0.0)


def group_mean(
  returns: jax.Array, mask: jax.Array, weight: jax.Array, *, samples: int
) -> jax.Array:
  """f32[B, T]: the mean whole return of the responses to a row's prompt, at each of its tokens.

  Args:
    returns, mask, weight, samples: as `others_baseline`.
  """
  whole = _whole(returns, mask).reshape(-1, samples)
  counted = weight.reshape(-1, samples) > 0
  top = masked.largest(whole, counted, -1)  # equal returns have it as their mean, exactly
  mean = top + masked.masked_mean(whole - top, counted, -1)[:, None]
  return jnp.where(mask, jnp.repeat(mean, samples, 1).reshape(-1)[:, None], 0.0)


def _whole(returns: jax.Array, mask: jax.Array) -> jax.Array:
  """f32[B]: the return to go of each row's first token."""
  return jnp.take_along_axis(returns, jnp.argmax(mask, -1)[:, None], 1)[:, 0]


def sequence_kl(logprobs: jax.Array, reference_logprobs: jax.Array, mask: jax.Array) -> jax.Array:
  """f32[B]: sum_t log pi - log pi_ref over the response, k1's estimate of the KL, in nats."""
  return masked.masked_sum(logprobs - reference_logprobs, mask, axis=-1)
