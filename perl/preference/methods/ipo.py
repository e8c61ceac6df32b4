"""IPO (Azar et al. 2023, arXiv 2310.12036): D is regressed on 1 / (2 tau), and no further."""

import dataclasses

import jax

from perl.objectives import preferences
from perl.preference.methods import Pairs, Responses


@dataclasses.dataclass(frozen=True)
class Method(Pairs):
  """(D - 1 / (2 tau))^2, of sums as in the paper, or of means over tokens."""

  tau: float
  per_token: bool

  def ratio(self, responses: Responses) -> jax.Array:
    """f32[B]: log pi - log pi_ref, whose difference is D."""
    return (responses.means if self.per_token else responses).ratio

  def reward(self, responses: Responses) -> jax.Array:
    """f32[B]: tau (log pi - log pi_ref)."""
    return self.tau * self.ratio(responses)

  def loss(self, chosen: Responses, rejected: Responses) -> jax.Array:
    """f32[B], see objectives.preferences.ipo."""
    return preferences.ipo(self.ratio(chosen) - self.ratio(rejected), beta=self.tau)
