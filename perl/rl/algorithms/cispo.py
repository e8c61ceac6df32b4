"""CISPO: importance weights are clipped, not updates (MiniMax-M1, arXiv 2506.13585).

  L = -sum_i sum_t sg(min(rho_t, 1 + e_high)) A_i log pi(a_t | x_t) / sum_i |y_i|

with GRPO's A_i: no token loses its gradient, as it does in PPO's clip. No KL is taken. The paper
does not give its e_high; 4 is ours.
"""

import jax

from perl.objectives import policy
from perl.rl import surrogate
from perl.rl.algorithms._groups import relative as estimate
from perl.types import Experience, Mean

__all__ = ['JUDGES_BY', 'OWN', 'estimate', 'policy_loss']

OWN = {'samples': 8, 'regularizer': 'none', 'aggregation': 'token', 'clip_high': 4.0}
JUDGES_BY = 'rewards'


def policy_loss(
  logprobs: jax.Array, e: Experience, *, clip_high: float, aggregation: str, max_new_tokens: int,
  correction: str = 'none', correction_cap: float = 3.0,
) -> tuple[Mean, dict[str, Mean]]:
  """L."""
  rho = policy.ratios(logprobs, e.behaviour_logprobs, e.response_mask)
  loss = policy.cispo(logprobs, rho, e.advantages, high=clip_high)
  w = surrogate.weights(e, correction=correction, correction_cap=correction_cap)
  total = surrogate.aggregated(w * loss, e, aggregation=aggregation, max_new_tokens=max_new_tokens)
  return total, surrogate.metrics(e, clip_fraction=rho > 1.0 + clip_high, correction=w)
