"""IPO (Azar et al. 2023, arXiv 2310.12036): D is regressed on 1 / (2 tau), and no further."""

import dataclasses
from typing import ClassVar

import jax

from perl.objectives import preferences
from perl.preference.methods import Responses


@dataclasses.dataclass(frozen=True)
class Method:
  """(D - 1 / (2 tau))^2, of sums as in the paper, or of means over tokens."""

  examples: ClassVar[str] = 'preference'
  reference: ClassVar[bool] = True
  drift: ClassVar[bool] = False

  tau: float
  per_token: bool

  def ratio(self, said: Responses) -> jax.Array:
    """f32[B]: log pi - log pi_ref, whose difference is D."""
    return (said.means if self.per_token else said).ratio

  def reward(self, said: Responses) -> jax.Array:
    """f32[B]: tau (log pi - log pi_ref)."""
    return self.tau * self.ratio(said)

  def loss(self, chosen: Responses, rejected: Responses) -> jax.Array:
    """f32[B], see objectives.preferences.ipo."""
    return preferences.ipo(self.ratio(chosen) - self.ratio(rejected), beta=self.tau)
