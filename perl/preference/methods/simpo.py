"""SimPO (Meng et al. 2024, arXiv 2405.14734): the mean log-prob itself is the reward."""

import dataclasses
from typing import ClassVar

import jax

from perl.objectives import preferences
from perl.preference.methods import Responses


@dataclasses.dataclass(frozen=True)
class Method:
  """-log sigmoid(beta (l_w - l_l) - gamma), of means over tokens."""

  examples: ClassVar[str] = 'preference'
  reference: ClassVar[bool] = False
  drift: ClassVar[bool] = False

  beta: float
  gamma: float

  def reward(self, said: Responses) -> jax.Array:
    """f32[B]: beta times the mean log-prob of a token."""
    return self.beta * said.means.logprobs

  def loss(self, chosen: Responses, rejected: Responses) -> jax.Array:
    """f32[B], see objectives.preferences.simpo."""
    return preferences.simpo(
      chosen.means.logprobs, rejected.means.logprobs, beta=self.beta, gamma=self.gamma)
