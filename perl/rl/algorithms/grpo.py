"""GRPO (Shao et al. 2024, DeepSeekMath, arXiv 2402.03300).

  A_i = (r_i - mean r) / std r over the k responses to a prompt
  L = mean_i 1/|y_i| sum_t [max(-A_i rho_t, -A_i clip(rho_t, 1 - e, 1 + e)) + beta k3_t]

with k3 = pi_ref / pi - 1 - log(pi_ref / pi) in the loss, whose gradient is that of KL(pi_ref || pi)
(objectives/regularizers.py). There is no critic.
"""

from perl.rl.algorithms._groups import relative as estimate
from perl.rl.surrogate import clipped as policy_loss

__all__ = ['JUDGES_BY', 'OWN', 'estimate', 'policy_loss']

OWN = {'samples': 8, 'regularizer': 'bregman', 'regularize': 'loss', 'aggregation': 'sequence'}
JUDGES_BY = 'rewards'
