"""KTO (Ethayarajh et al. 2024, arXiv 2402.01306): thumbs for single responses, no pairs."""

import dataclasses
from typing import ClassVar

import jax

from perl.objectives import preferences
from perl.preference.methods import Responses


@dataclasses.dataclass(frozen=True)
class Method:
  """w (1 - sigmoid(+-beta (log pi / pi_ref - z))), z the drift of mismatched pairs."""

  examples: ClassVar[str] = 'labelled'
  reference: ClassVar[bool] = True
  drift: ClassVar[bool] = True

  beta: float
  desirable: float
  undesirable: float

  def reward(self, said: Responses) -> jax.Array:
    """f32[B]: beta (log pi - log pi_ref)."""
    return self.beta * said.ratio

  def loss(self, said: Responses, label: jax.Array, drift: jax.Array) -> jax.Array:
    """f32[B], see objectives.preferences.kto."""
    return preferences.kto(
      said.ratio, label, drift, beta=self.beta, desirable=self.desirable,
      undesirable=self.undesirable,
    )
