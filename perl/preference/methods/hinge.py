"""RSO's hinge-norm loss (Liu et al. 2023, arXiv 2309.06657): SLiC's margin over the reference."""

import dataclasses

import jax

from perl.objectives import preferences
from perl.preference.methods import Pairs, Responses


@dataclasses.dataclass(frozen=True)
class Method(Pairs):
  """max(0, 1 - beta D); the paper's gamma is beta."""

  beta: float

  def loss(self, chosen: Responses, rejected: Responses) -> jax.Array:
    """f32[B], see objectives.preferences.hinge."""
    return preferences.hinge(chosen.ratio - rejected.ratio, beta=self.beta)
