"""DPO (Rafailov et al. 2023, arXiv 2305.18290): logistic regression on beta D."""

import dataclasses

import jax

from perl.objectives import preferences
from perl.preference.methods import Pairs, Responses


@dataclasses.dataclass(frozen=True)
class Method(Pairs):
  """-log sigmoid(beta D), with smoothed labels or of means over tokens where that is asked for."""

  beta: float
  smoothing: float
  per_token: bool

  def ratio(self, responses: Responses) -> jax.Array:
    """f32[B]: log pi - log pi_ref, whose difference is D."""
    return (responses.means if self.per_token else responses).ratio

  def reward(self, responses: Responses) -> jax.Array:
    """f32[B]: beta (log pi - log pi_ref)."""
    return self.beta * self.ratio(responses)

  def loss(self, chosen: Responses, rejected: Responses) -> jax.Array:
    """f32[B], see objectives.preferences.dpo."""
    d = self.ratio(chosen) - self.ratio(rejected)
    return preferences.dpo(d, beta=self.beta, smoothing=self.smoothing)
