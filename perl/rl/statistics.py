"""What RL remembers from batch to batch: the KL coefficient, the scale of rewards, a baseline.

All of it is `TrainState.running`, a dict that holds only what the config asks for: it is saved with
the state, so that a resumed run goes on to the same bits.
"""

import jax
import jax.numpy as jnp

from perl import masked
from perl.objectives import regularizers
from perl.types import Experience, Tree

LARGEST_BETA = {'reward': 0.99, 'loss': 1e3}
"""Bound of an adaptive beta: in the reward it shares 1 with the score, in the loss it does not."""

LARGEST_SCORE = 1e15
"""Bound of what a response may be worth: squares and their sums stay finite."""


def first(
  *, beta: float, kl_target: float = 0.0, reward_scale: str = 'none', baseline: str = 'none'
) -> Tree:
  """The statistics before the first batch.

  Args:
    beta: the first coefficient.
    kl_target: nats a response that an adaptive coefficient steers to; 0 keeps beta fixed.
    reward_scale: 'running' divides scores by their standard deviation so far.
    baseline: 'moving_average' keeps a mean of the returns.
  """
  zeros = lambda *names: {name: jnp.zeros((), jnp.float32) for name in names}  # none is another
  running = {'beta': jnp.float32(beta)} if kl_target else {}
  if reward_scale == 'running':
    running |= zeros('count', 'mean', 'squares')
  if baseline == 'moving_average':
    running |= zeros('mean_return', 'seen')
  return running


def begun(running: Tree, scores: jax.Array) -> Tree:
  """The statistics before the first batch, where scores f32[N] of the anchor are known.

  With them the scale is known from the first batch on, as the offset is.
  """
  if 'count' not in running:
    return running
  return running | _observed(running, scores, jnp.ones(scores.shape))


def beta_of(running: Tree, beta: float) -> jax.Array | float:
  """The coefficient now: the adaptive one, or `beta`."""
  return running.get('beta', beta)


def scale(running: Tree, scores: jax.Array, weight: jax.Array) -> jax.Array:
  """f32[]: 1 over the standard deviation of scores so far, this batch's among them.

  1 where nothing is scaled (running has no 'count'), and until two scores have differed.

  Args:
    running: the statistics before the batch.
    scores: f32[B].
    weight: f32[B], 0 for filler rows.
  """
  if 'count' not in running:
    return jnp.ones(())
  known = _observed(running, scores, weight)
  variance = known['squares'] / jnp.maximum(known['count'], 1.0)
  return jnp.where(variance > 0, jax.lax.rsqrt(variance + 1e-8), 1.0)


def transformed(
  scores: jax.Array, *, offset: jax.Array | float = 0.0, scale: jax.Array | float = 1.0,
  clip: float = 0.0,
) -> jax.Array:
  """f32[B]: scores less an offset, times a scale, then clipped; at most LARGEST_SCORE in size.

  The offset is the anchor's mean, which stays: a mean that followed the policy would take from
  every batch what the policy gained.

  Args:
    scores: f32[B].
    offset: f32[].
    scale: f32[], see `scale`; all responses that are compared share one.
    clip: bound on either side; 0 is none.
  """
  scores, most = (scores - offset) * scale, min(clip or LARGEST_SCORE, LARGEST_SCORE)
  return jnp.clip(scores, -most, most)


def moving_average(running: Tree) -> jax.Array:
  """f32[]: the mean return of the batches before, the newest weighing most; 0 before the first."""
  return running['mean_return']


def advanced(
  running: Tree, e: Experience, *, kl_target: float = 0.0, kl_horizon: float = 1e4,
  regularize: str = 'reward', baseline_decay: float = 0.95,
) -> Tree:
  """The statistics after a batch.

  Args:
    running: those before it.
    e: its experience.
    kl_target, kl_horizon: see objectives.regularizers.adaptive_coefficient; n is the batch's
      number of responses.
    regularize: where beta stands, which bounds it: LARGEST_BETA.
    baseline_decay: weight of what came before in the moving average.
  """
  running = dict(running)
  if 'beta' in running:
    kl = masked.masked_sum(
      e.behaviour_logprobs - e.reference_logprobs, e.response_mask, axis=-1)
    measured = masked.masked_mean(kl, e.weight > 0)
    beta = regularizers.adaptive_coefficient(
      running['beta'], measured, target=kl_target, horizon=kl_horizon, count=(e.weight > 0).sum())
    running['beta'] = jnp.minimum(beta, LARGEST_BETA[regularize])
  if 'count' in running:
    running |= _observed(running, e.scores, e.weight)
  if 'mean_return' in running:
    mean = masked.masked_mean(e.rewards.sum(-1), e.weight > 0)
    # The i-th of n batches weighs d^(n-i), and all together 1: what does not change stays.
    running['seen'] = baseline_decay * running['seen'] + 1
    running['mean_return'] += (mean - running['mean_return']) / running['seen']
  return running


def _observed(running: Tree, scores: jax.Array, weight: jax.Array) -> Tree:
  """Count, mean and sum of squared differences with a batch's scores among them (Chan et al.)."""
  counted = weight > 0
  count = counted.sum().astype(jnp.float32)
  top = masked.largest(scores, counted)[0]  # equal scores have it as their mean, exactly
  mean = top + masked.masked_mean(scores - top, counted)
  squares = masked.masked_var(scores, counted) * count
  total = jnp.maximum(running['count'] + count, 1.0)
  apart = mean - running['mean']
  return {
    'count': running['count'] + count,
    'mean': running['mean'] + apart * (count / total),
    'squares': running['squares'] + squares + apart**2 * (running['count'] * (count / total)),
  }
