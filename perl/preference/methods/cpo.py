"""CPO (Xu et al. 2024, arXiv 2401.08417): DPO with a uniform reference, and a term of SFT."""

import dataclasses

import jax

from perl.objectives import preferences
from perl.preference.methods import Pairs, Responses


@dataclasses.dataclass(frozen=True)
class Method(Pairs):
  """-log sigmoid(beta (l_w - l_l)) of sums, - alpha times the chosen response's mean log-prob."""

  reference = False

  beta: float
  alpha: float

  def reward(self, responses: Responses) -> jax.Array:
    """f32[B]: beta log P(y)."""
    return self.beta * responses.logprobs

  def loss(self, chosen: Responses, rejected: Responses) -> jax.Array:
    """f32[B], see objectives.preferences.cpo."""
    return preferences.cpo(
      chosen.logprobs, rejected.logprobs, chosen.means.logprobs, beta=self.beta, alpha=self.alpha)
