"""SLiC-HF (Zhao et al. 2023, arXiv 2305.10425): a margin of log-probs, held by a term of SFT."""

import dataclasses

import jax

from perl.objectives import preferences
from perl.preference.methods import Pairs, Responses


@dataclasses.dataclass(frozen=True)
class Method(Pairs):
  """max(0, delta - log P(y_w) + log P(y_l)) - lambda log P(y_w).

  The response that the second term holds to is the chosen one; it takes no other data.
  """

  reference = False

  delta: float
  sft: float

  def reward(self, responses: Responses) -> jax.Array:
    """f32[B]: log P(y)."""
    return responses.logprobs

  def loss(self, chosen: Responses, rejected: Responses) -> jax.Array:
    """f32[B]; objectives.preferences.hinge in units of delta."""
    margin = preferences.margin(chosen.logprobs, rejected.logprobs)
    rank = self.delta * preferences.hinge(margin, beta=1.0 / self.delta)
    return rank - self.sft * chosen.logprobs
