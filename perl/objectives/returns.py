"""Rewards, returns and baselines of policy gradients."""

import jax
import jax.numpy as jnp

from perl import masked


def shaped_rewards(
  scores: jax.Array,
  logprobs: jax.Array,
  reference_logprobs: jax.Array,
  mask: jax.Array,
  *,
  beta: float,
) -> jax.Array:
  """f32[B, T]: (1 - beta) r at the last response token, minus beta k1 at every response token.

  Their sum over t has the expectation (1 - beta) r - beta KL(pi || anchor) (PERL, sec. 3), because
  k1 = log pi - log pi_ref is unbiased for the KL as a *reward* (as a loss it has gradient zero).

  Args:
    scores: f32[B], the reward model's r.
    logprobs: f32[B, T], of the policy that sampled.
    reference_logprobs: f32[B, T], of the anchor.
    mask: bool[B, T], the response's tokens.
    beta: weight of the KL, in [0, 1].
  """
  k1 = jnp.where(mask, logprobs - reference_logprobs, 0.0)
  last = masked.last_index(mask)
  at_last = jax.nn.one_hot(last, mask.shape[-1], dtype=jnp.float32)
  terminal = jnp.where(mask, at_last * scores.astype(jnp.float32)[:, None], 0.0)
  return (1.0 - beta) * terminal - beta * k1


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


def batch_mean_baseline(returns: jax.Array, mask: jax.Array, weight: jax.Array) -> jax.Array:
  """f32[B, T]: the mean over the *other* rows of their whole return, for every token of a row.

  Leaving the row itself out keeps the gradient unbiased. A single row has the baseline 0.

  Args:
    returns: f32[B, T], to go.
    mask: bool[B, T], the response's tokens.
    weight: f32[B], 0 for filler rows.
  """
  first = jnp.argmax(mask, -1)
  whole = jnp.take_along_axis(returns, first[:, None], 1)[:, 0]
  whole = jnp.where(weight > 0, whole, 0.0) * weight  # a filler row may hold anything
  others = jnp.maximum(weight.sum() - weight, 1.0)
  return jnp.where(mask, ((whole.sum() - whole) / others)[:, None], 0.0)


def sequence_kl(logprobs: jax.Array, reference_logprobs: jax.Array, mask: jax.Array) -> jax.Array:
  """f32[B]: sum_t log pi - log pi_ref over the response, k1's estimate of the KL, in nats."""
  return masked.masked_sum(logprobs - reference_logprobs, mask, axis=-1)
