"""The advantage of a response among those to the same prompt, as several algorithms take it."""

from perl.objectives import advantages
from perl.types import Experience


def relative(e: Experience, *, samples: int) -> Experience:
  """A_i = (r_i - mean r) / std r of the k responses to a prompt, at every token of response i."""
  a = advantages.group_relative(e.rewards.sum(-1), e.weight, samples=samples)
  return e.replace(advantages=advantages.per_token(a, e.response_mask))
