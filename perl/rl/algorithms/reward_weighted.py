"""Reward-weighted regression: responses are imitated by what they are worth (Peters and Schaal,
2007; for language models Korbak et al. 2022, arXiv 2206.00761).

  L = -mean_i w_i log pi(y_i | x),   w_i = exp(r_i / tau) / mean_j exp(r_j / tau)

with the mean over the responses to a prompt: over a batch of different prompts the easy ones would
have all the weight.
"""

import jax
import jax.numpy as jnp

from perl.objectives import advantages
from perl.rl.surrogate import score_function as policy_loss
from perl.types import Experience

__all__ = ['JUDGES_BY', 'OWN', 'estimate', 'policy_loss']

OWN = {'samples': 8, 'regularizer': 'none', 'aggregation': 'sequence_sum'}
JUDGES_BY = 'rewards'


def estimate(e: Experience, *, samples: int, reward_temperature: float = 1.0) -> Experience:
  """w_i at every token of response i, as if it were an advantage."""
  compared = lambda x: x.reshape(-1, samples)
  counted = compared(e.weight) > 0
  whole = compared(e.rewards.sum(-1)) / reward_temperature
  share = jax.nn.softmax(jnp.where(counted, whole, -1e30), -1)
  w = jnp.where(counted, share * counted.sum(-1, keepdims=True), 0.0).reshape(-1)
  return e.replace(advantages=advantages.per_token(w, e.response_mask))
