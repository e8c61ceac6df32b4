"""ReMax: REINFORCE against the likeliest response (Li et al. 2023, arXiv 2310.10505).

  A_t = Z_t - r(x, y_greedy),      L = -sum_t A_t log pi(a_t | x_t)

The greedy response is decoded and scored for each prompt: a baseline that costs a rollout, and
neither a critic nor several samples.
"""

import jax.numpy as jnp

from perl.rl.surrogate import score_function as policy_loss
from perl.types import Experience

__all__ = ['GREEDY', 'JUDGES_BY', 'ON_POLICY', 'OWN', 'estimate', 'policy_loss']

OWN = {'aggregation': 'sequence_sum'}
JUDGES_BY = 'returns'
GREEDY = True
ON_POLICY = True


def estimate(e: Experience) -> Experience:
  """A_t."""
  return e.replace(
    advantages=jnp.where(e.response_mask, e.returns - e.greedy_returns[:, None], 0.0))
