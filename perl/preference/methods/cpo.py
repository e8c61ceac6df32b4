"""CPO (Xu et al. 2024, arXiv 2401.08417): DPO with a uniform reference, and a term of SFT."""

import dataclasses
from typing import ClassVar

import jax

from perl.objectives import preferences
from perl.preference.methods import Responses


@dataclasses.dataclass(frozen=True)
class Method:
  """-log sigmoid(beta (l_w - l_l)) of sums, - alpha times the chosen response's mean log-prob."""

  examples: ClassVar[str] = 'preference'
  reference: ClassVar[bool] = False
  drift: ClassVar[bool] = False

  beta: float
  alpha: float

  def reward(self, said: Responses) -> jax.Array:
    """f32[B]: beta log P(y)."""
    return self.beta * said.logprobs

  def loss(self, chosen: Responses, rejected: Responses) -> jax.Array:
    """f32[B], see objectives.preferences.cpo."""
    return preferences.cpo(
      chosen.logprobs, rejected.logprobs, chosen.means.logprobs, beta=self.beta, alpha=self.alpha)
