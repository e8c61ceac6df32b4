"""KTO (Ethayarajh et al. 2024, arXiv 2402.01306): thumbs for single responses, no pairs."""

import dataclasses

import jax

from perl.objectives import preferences
from perl.preference.methods import Pairs, Responses


@dataclasses.dataclass(frozen=True)
class Method(Pairs):
  """w (1 - sigmoid(+-beta (log pi / pi_ref - z))), z the drift of mismatched pairs."""

  examples = 'labelled'
  drift = True

  beta: float
  desirable: float
  undesirable: float

  def loss(self, responses: Responses, label: jax.Array, drift: jax.Array) -> jax.Array:
    """f32[B], see objectives.preferences.kto."""
    return preferences.kto(
      responses.ratio, label, drift, beta=self.beta, desirable=self.desirable,
      undesirable=self.undesirable,
    )
