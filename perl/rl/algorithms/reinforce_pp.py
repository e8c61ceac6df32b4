"""REINFORCE++: returns to go, whitened over the batch, in PPO's loss (Hu 2025, arXiv 2501.03262).

  A_t = (Z_t - mean) / std over all tokens of the batch,   Z_t = sum_{s >= t} r_s

with the KL in the rewards, and no critic. With several responses to a prompt their mean is taken
from Z_t first (its form REINFORCE++-baseline).
"""

from perl.objectives import advantages, returns
from perl.rl.surrogate import clipped as policy_loss
from perl.types import Experience

__all__ = ['JUDGES_BY', 'OWN', 'estimate', 'policy_loss']

OWN = {'aggregation': 'token'}
JUDGES_BY = 'returns'


def estimate(e: Experience, *, samples: int) -> Experience:
  """A_t."""
  z = e.returns
  if samples > 1:
    z = z - returns.group_mean(z, e.response_mask, e.weight, samples=samples)
  return e.replace(advantages=advantages.whitened_returns(z, e.counted))
