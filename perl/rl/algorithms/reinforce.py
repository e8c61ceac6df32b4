"""REINFORCE with a baseline, as in PERL (Sidahmed et al., arXiv 2403.10704, sec. 3).

  L_PG = -sum_t log pi(a_t | x_t) sg(Z_t - b_t),      L_V = sum_t (Z_t - V(x_t))^2

with Z_t the return to go of the shaped rewards, gamma = 1. Both are sums over a response and means
over the batch. The baseline b_t is the critic's value V(x_t), the mean return of the other
responses (of the batch, or to the same prompt), or a moving average over the batches before.
"""

import jax
import jax.numpy as jnp

from perl.objectives import losses, returns
from perl.rl import statistics, surrogate
from perl.types import Experience, Mean, Tree

BASELINES = ('value', 'batch_mean', 'leave_one_out', 'moving_average', 'none')
OWN = {'baseline': 'value', 'aggregation': 'sequence_sum'}
JUDGES_BY = 'returns'
ON_POLICY = True


def trains(*, baseline: str) -> tuple[str, ...]:
  """The roles that learn under a baseline.

  Raises:
    ValueError: an unknown baseline.
  """
  if baseline not in BASELINES:
    raise ValueError(f'expected rl.baseline among {BASELINES}, found {baseline!r}')
  return ('policy', 'critic') if baseline == 'value' else ('policy',)


def estimate(
  e: Experience, *, baseline: str, samples: int, running: Tree
) -> Experience:
  """A_t = Z_t - b_t; that of the critic's baseline is left to `policy_loss`."""
  if baseline == 'value':
    return e
  if baseline == 'moving_average':
    b = statistics.moving_average(running)
  elif baseline == 'none':
    b = 0.0
  else:
    compared = samples if baseline == 'leave_one_out' else 0
    b = returns.others_baseline(e.returns, e.response_mask, e.weight, samples=compared)
  return e.replace(advantages=jnp.where(e.response_mask, e.returns - b, 0.0))


def policy_loss(
  logprobs: jax.Array, e: Experience, *, aggregation: str, max_new_tokens: int,
  correction: str = 'none', correction_cap: float = 3.0,
) -> tuple[Mean, dict[str, Mean]]:
  """L_PG; e.values are the critic's, as it is now, where it is the baseline."""
  if e.advantages is None:
    e = e.replace(advantages=e.returns - e.values)
  return surrogate.score_function(
    logprobs, e, aggregation=aggregation, max_new_tokens=max_new_tokens, correction=correction,
    correction_cap=correction_cap)


def value_loss(values: jax.Array, e: Experience) -> Mean:
  """L_V."""
  return Mean.of(losses.value(values, e.returns, e.response_mask), e.weight)
