"""DPO (Rafailov et al. 2023, arXiv 2305.18290): logistic regression on beta D."""

import dataclasses
from typing import ClassVar

import jax

from perl.objectives import preferences
from perl.preference.methods import Responses


@dataclasses.dataclass(frozen=True)
class Method:
  """-log sigmoid(beta D), with smoothed labels or of means over tokens where that is asked for."""

  examples: ClassVar[str] = 'preference'
  reference: ClassVar[bool] = True
  drift: ClassVar[bool] = False

  beta: float
  smoothing: float
  per_token: bool

  def ratio(self, said: Responses) -> jax.Array:
    """f32[B]: log pi - log pi_ref, whose difference is D."""
    return (said.means if self.per_token else said).ratio

  def reward(self, said: Responses) -> jax.Array:
    """f32[B]: beta (log pi - log pi_ref)."""
    return self.beta * self.ratio(said)

  def loss(self, chosen: Responses, rejected: Responses) -> jax.Array:
    """f32[B], see objectives.preferences.dpo."""
    d = self.ratio(chosen) - self.ratio(rejected)
    return preferences.dpo(d, beta=self.beta, smoothing=self.smoothing)
