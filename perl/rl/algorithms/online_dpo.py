"""Online DPO: pairs of the policy's own responses (Guo et al. 2024, arXiv 2402.04792).

  L = -log sigmoid(beta_D [(log pi(y_w) - log pi_ref(y_w)) - (log pi(y_l) - log pi_ref(y_l))])

with y_w and y_l the best and the worst of a prompt's k responses by their scores. The reference is
in the loss itself, and nowhere else.
"""

import jax
import jax.numpy as jnp

from perl import masked
from perl.objectives import preferences
from perl.types import Experience, Mean

OWN = {'samples': 2, 'regularizer': 'none'}
JUDGES_BY = 'scores'
REFERENCE = True


def estimate(e: Experience) -> Experience:
  """Nothing: a pair is judged by its scores."""
  return e


def policy_loss(
  logprobs: jax.Array, e: Experience, *, samples: int, preference_beta: float = 0.1
) -> tuple[Mean, dict[str, Mean]]:
  """L, a mean over prompts; responses that all score the same teach nothing.

  Raises:
    ValueError: one response to a prompt.
  """
  if samples < 2:
    raise ValueError(f'expected rl.samples of at least 2 for pairs, found {samples}')
  ratio = masked.masked_sum(logprobs - e.reference_logprobs, e.response_mask, axis=-1)
  present = (e.weight > 0).reshape(-1, samples)
  over = lambda x: x.reshape(-1, samples)
  pick = lambda x, i: jnp.take_along_axis(over(x), i[:, None], 1)[:, 0]
  best = jnp.where(present, over(e.scores), -jnp.inf).argmax(-1)
  worst = jnp.where(present, over(e.scores), jnp.inf).argmin(-1)
  d = pick(ratio, best) - pick(ratio, worst)
  apart = present.any(-1) & (pick(e.scores, best) > pick(e.scores, worst))
  return Mean.of(preferences.dpo(d, beta=preference_beta), apart), {
    'margin': Mean.of(preference_beta * d, apart), 'pairs': Mean.of(apart)}
