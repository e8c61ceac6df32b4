"""ORPO (Hong et al. 2024, arXiv 2403.07691): SFT on the chosen response and an odds ratio."""

import dataclasses

import jax

from perl.objectives import preferences
from perl.preference.methods import Pairs, Responses


@dataclasses.dataclass(frozen=True)
class Method(Pairs):
  """-log P(y_w) - beta log sigmoid(log odds ratio), of means over tokens; its lambda is beta."""

  reference = False

  beta: float

  def reward(self, responses: Responses) -> jax.Array:
    """f32[B]: beta times the mean log-prob of a token."""
    return self.beta * responses.means.logprobs

  def loss(self, chosen: Responses, rejected: Responses) -> jax.Array:
    """f32[B], see objectives.preferences.orpo."""
    return preferences.orpo(chosen.means.logprobs, rejected.means.logprobs, beta=self.beta)
