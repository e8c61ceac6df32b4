"""PPO (Schulman et al. 2017, arXiv 1707.06347) with a critic, as in RLHF (Ouyang et al. 2022).

  A_t = GAE(lambda) of the shaped rewards and V_old, R_t = A_t + V_old(x_t), then A whitened
  L_PG = mean max(-A rho, -A clip(rho, 1 - e, 1 + e)),   rho_t = pi(a_t | x_t) / pi_old(a_t | x_t)
  L_V = mean max((V - R)^2, (clip(V, V_old - e_V, V_old + e_V) - R)^2) / 2

both over the tokens of a minibatch. Epochs, minibatches and the rest as in Sun et al. 2023 (arXiv
2309.09055, LoRA-PPO); rl.ptx makes it PPO-ptx.
"""

import jax

from perl import masked
from perl.objectives import advantages, policy
from perl.rl import surrogate
from perl.rl.surrogate import clipped as policy_loss
from perl.types import Experience, Mean

__all__ = ['ADAM_EPS', 'JUDGES_BY', 'OWN', 'VALUES_BEFORE', 'estimate', 'policy_loss', 'trains',
           'value_loss']

OWN = {'epochs': 2, 'minibatches': 2, 'aggregation': 'token', 'whiten_advantages': True}
JUDGES_BY = 'rewards'
VALUES_BEFORE = True
ADAM_EPS = 1e-5


def trains() -> tuple[str, ...]:
  """The roles that learn."""
  return 'policy', 'critic'


def estimate(
  e: Experience, *, whiten_advantages: bool, gamma: float = 1.0, lam: float = 0.95,
  whiten_rewards: bool = False,
) -> Experience:
  """A and R. Whitened rewards keep their mean; whitening A leaves R alone."""
  rewards = masked.whiten(e.rewards, e.counted, shift_mean=False) if whiten_rewards else e.rewards
  a, targets = advantages.gae(rewards, e.values, e.response_mask, gamma=gamma, lam=lam)
  a = masked.whiten(a, e.counted) if whiten_advantages else a
  return e.replace(advantages=a, returns=targets)


def value_loss(
  values: jax.Array, e: Experience, *, aggregation: str, max_new_tokens: int,
  value_clip: float = 0.2,
) -> Mean:
  """L_V; value_clip 0 bounds nothing."""
  loss = policy.clipped_value(values, e.values, e.returns, clip=value_clip or None)
  return surrogate.aggregated(
    loss, e, aggregation=aggregation, max_new_tokens=max_new_tokens)
