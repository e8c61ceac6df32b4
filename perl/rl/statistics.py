"""What RL remembers from batch to batch: the KL coefficient, the scale of rewards, a baseline.

All of it is `TrainState.running`, a dict that holds only what the config asks for: it is saved with
the state, so that a resumed run goes on to the same bits.
"""

import jax
import jax.numpy as jnp

from perl import masked
from perl.objectives import regularizers
from perl.types import Experience, Tree

LARGEST_BETA = 0.99
"""In the reward, beta shares 1 with the score."""


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
    running |= zeros('return', 'seen')
  return running


def beta_of(running: Tree, beta: float) -> jax.Array | float:
  """The coefficient now: the adaptive one, or `beta`."""
  return running.get('beta', beta)


def transformed(
  scores: jax.Array, weight: jax.Array, running: Tree, *, offset: jax.Array | float = 0.0,
  clip: float = 0.0,
) -> jax.Array:
  """f32[B]: scores less an offset, over their standard deviation so far, this batch's among them,
  then clipped.

  The offset is the anchor's mean, which stays: a mean that followed the policy would take from
  every batch what the policy gained.

  Args:
    scores: f32[B].
    weight: f32[B], 0 for filler rows.
    offset: f32[].
    running: without 'count' nothing is scaled.
    clip: bound on either side; 0 is none.
  """
  if 'count' in running:
    known = _observed(running, scores, weight)
    variance = known['squares'] / jnp.maximum(known['count'], 1.0)
    scores = (scores - offset) * jax.lax.rsqrt(variance + 1e-8)
  else:
    scores = scores - offset
  return jnp.clip(scores, -clip, clip) if clip else scores


def moving_average(running: Tree, *, decay: float) -> jax.Array:
  """f32[]: the mean return of the batches before, the newest weighing most; 0 before the first."""
  return running['return'] / jnp.maximum(1.0 - decay ** running['seen'], 1e-8)


def advanced(
  running: Tree, e: Experience, *, kl_target: float = 0.0,
  kl_horizon: float = 1e4, baseline_decay: float = 0.95,
) -> Tree:
  """The statistics after a batch.

  Args:
    running: those before it.
    e: its experience.
    kl_target, kl_horizon: see objectives.regularizers.adaptive_coefficient; n is the batch's
      number of responses.
    baseline_decay: weight of what came before in the moving average.
  """
  running = dict(running)
  if 'beta' in running:
    kl = masked.masked_sum(
      e.behaviour_logprobs - e.reference_logprobs, e.response_mask, axis=-1)
    measured = masked.masked_mean(kl, e.weight > 0)
    beta = regularizers.adaptive_coefficient(
      running['beta'], measured, target=kl_target, horizon=kl_horizon, count=(e.weight > 0).sum())
    running['beta'] = jnp.minimum(beta, LARGEST_BETA)
  if 'count' in running:
    running |= _observed(running, e.scores, e.weight)
  if 'return' in running:
    mean = masked.masked_mean(e.rewards.sum(-1), e.weight > 0)
    running['return'] = baseline_decay * running['return'] + (1 - baseline_decay) * mean
    running['seen'] = running['seen'] + 1
  return running


def _observed(running: Tree, scores: jax.Array, weight: jax.Array) -> Tree:
  """Count, mean and sum of squared differences with a batch's scores among them (Chan et al.)."""
  counted = weight > 0
  count, mean = counted.sum().astype(jnp.float32), masked.masked_mean(scores, counted)
  squares = masked.masked_var(scores, counted) * count
  total = jnp.maximum(running['count'] + count, 1.0)
  apart = mean - running['mean']
  return {
    'count': running['count'] + count,
    'mean': running['mean'] + apart * count / total,
    'squares': running['squares'] + squares + apart**2 * running['count'] * count / total,
  }
