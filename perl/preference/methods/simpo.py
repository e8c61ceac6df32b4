"""SimPO (Meng et al. 2024, arXiv 2405.14734): the mean log-prob itself is the reward."""

import dataclasses

import jax

from perl.objectives import preferences
from perl.preference.methods import Pairs, Responses


@dataclasses.dataclass(frozen=True)
class Method(Pairs):
  """-log sigmoid(beta (l_w - l_l) - gamma), of means over tokens."""

  reference = False

  beta: float
  gamma: float

  def reward(self, responses: Responses) -> jax.Array:
    """f32[B]: beta times the mean log-prob of a token."""
    return self.beta * responses.means.logprobs

  def loss(self, chosen: Responses, rejected: Responses) -> jax.Array:
    """f32[B], see objectives.preferences.simpo."""
    return preferences.simpo(
      chosen.means.logprobs, rejected.means.logprobs, beta=self.beta, gamma=self.gamma)
