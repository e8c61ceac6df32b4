"""DAPO (Yu et al. 2025, arXiv 2503.14476): GRPO's advantages, four changes around them.

  L = sum_i sum_t max(-A_i rho_t, -A_i clip(rho_t, 1 - e_low, 1 + e_high)) / sum_i |y_i|

Clip-higher: e_high > e_low. Token-mean: long responses count for more. Dynamic sampling
(rl.rounds): prompts whose responses all score the same are sampled past. Overlong shaping
(rl.overlong): a response near the longest length loses up to 1. No KL is taken.
"""

from perl.rl.algorithms._groups import relative as estimate
from perl.rl.surrogate import clipped as policy_loss

__all__ = ['JUDGES_BY', 'OWN', 'estimate', 'policy_loss']

OWN = {'samples': 8, 'regularizer': 'none', 'aggregation': 'token', 'clip_high': 0.28,
       'overlong': 0.2, 'rounds': 3}
JUDGES_BY = 'rewards'
