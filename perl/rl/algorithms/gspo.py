"""GSPO: GRPO with one ratio a response (Zheng et al. 2025, arXiv 2507.18071).

  s_i = (pi(y_i | x) / pi_old(y_i | x))^(1 / |y_i|)
  L = mean_i max(-A_i s_i, -A_i clip(s_i, 1 - e_low, 1 + e_high))

with GRPO's A_i. A geometric mean over tokens moves little, hence the small bounds. No KL is taken.
"""

from perl.rl.algorithms._groups import relative as estimate
from perl.rl.surrogate import clipped as policy_loss

__all__ = ['JUDGES_BY', 'OWN', 'estimate', 'policy_loss']

OWN = {'samples': 8, 'regularizer': 'none', 'level': 'sequence', 'aggregation': 'sequence',
       'clip': 3e-4, 'clip_high': 4e-4}
JUDGES_BY = 'rewards'
