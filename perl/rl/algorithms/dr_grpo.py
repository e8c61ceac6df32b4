"""Dr. GRPO: GRPO without its two biases (Liu et al. 2025, arXiv 2503.20783).

  A_i = r_i - mean r over the k responses to a prompt
  L = mean_i 1/R sum_t max(-A_i rho_t, -A_i clip(rho_t, 1 - e, 1 + e))

No deviation makes easy and hard prompts weigh more, and R, the longest length that there can be,
in place of each response's own makes no wrong response cheaper by being long. No KL is taken.
"""

from perl.objectives import advantages
from perl.rl.surrogate import clipped as policy_loss
from perl.types import Experience

__all__ = ['JUDGES_BY', 'OWN', 'estimate', 'policy_loss']

OWN = {'samples': 8, 'regularizer': 'none', 'aggregation': 'constant'}
JUDGES_BY = 'rewards'


def estimate(e: Experience, *, samples: int) -> Experience:
  """A_i at every token of response i."""
  a = advantages.group_relative(e.rewards.sum(-1), e.weight, samples=samples, scale='none')
  return e.replace(advantages=advantages.per_token(a, e.response_mask))
