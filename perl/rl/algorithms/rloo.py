"""RLOO: REINFORCE on whole responses, each other's baseline (Ahmadian et al. 2024, 2402.14740).

  A_i = R_i - (sum_{j != i} R_j) / (k - 1),      L = max(-A_i rho_i, -A_i clip(rho_i)),
  rho_i = pi(y_i | x) / pi_old(y_i | x)

with R the whole shaped return of a response. At the first update rho is 1, and its gradient that
of log pi(y | x): the paper's own. Further ones are clipped as in PPO.
"""

from perl.objectives import advantages
from perl.rl.surrogate import clipped as policy_loss
from perl.types import Experience

__all__ = ['JUDGES_BY', 'OWN', 'estimate', 'policy_loss']

OWN = {'samples': 4, 'level': 'response'}
JUDGES_BY = 'rewards'


def estimate(e: Experience, *, samples: int) -> Experience:
  """A_i at every token of response i."""
  a = advantages.leave_one_out(e.rewards.sum(-1), e.weight, samples=samples)
  return e.replace(advantages=advantages.per_token(a, e.response_mask))
