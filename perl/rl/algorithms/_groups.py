"""The advantage of a response among those to the same prompt, as several algorithms take it."""

import jax.numpy as jnp

from perl.objectives import advantages
from perl.types import Experience


def relative(e: Experience, *, samples: int, scale_rewards: str = 'group') -> Experience:
  """A_i = (r_i - mean r) / std r of the k responses to a prompt, at every token of response i.

  A group whose scores are all the same teaches nothing, whatever its KL: over the deviation of the
  KL alone, its noise would weigh as much as a right answer against a wrong one.
  """
  a = advantages.group_relative(
    e.rewards.sum(-1), e.weight, samples=samples, scale=scale_rewards)
  if scale_rewards != 'none':
    a = jnp.where(advantages.informative(e.scores, e.weight, samples=samples), a, 0.0)
  return e.replace(advantages=advantages.per_token(a, e.response_mask))
