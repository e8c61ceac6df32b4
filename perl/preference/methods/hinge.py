"""RSO's hinge-norm loss (Liu et al. 2023, arXiv 2309.06657): SLiC's margin over the reference."""

import dataclasses
from typing import ClassVar

import jax

from perl.objectives import preferences
from perl.preference.methods import Responses


@dataclasses.dataclass(frozen=True)
class Method:
  """max(0, 1 - beta D); the paper's gamma is beta."""

  examples: ClassVar[str] = 'preference'
  reference: ClassVar[bool] = True
  drift: ClassVar[bool] = False

  beta: float

  def reward(self, said: Responses) -> jax.Array:
    """f32[B]: beta (log pi - log pi_ref)."""
    return self.beta * said.ratio

  def loss(self, chosen: Responses, rejected: Responses) -> jax.Array:
    """f32[B], see objectives.preferences.hinge."""
    return preferences.hinge(chosen.ratio - rejected.ratio, beta=self.beta)
