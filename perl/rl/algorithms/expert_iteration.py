"""Expert iteration: what passes is imitated (ReST: Gulcehre et al. 2023, arXiv 2308.08998; with a
verifier, online rejection fine-tuning: Yuan et al. 2023, 2308.01825).

  L = -mean over the tokens of all responses with r(x, y) > threshold of log pi(a_t | x_t)

with r less the anchor's mean (rl.reward_centre): at 0 what is better than the anchor passes, and of
right and wrong answers the right ones.
"""

import jax

from perl.objectives import advantages, losses
from perl.types import Experience, Mean

OWN = {'regularizer': 'none'}
JUDGES_BY = 'rewards'


def estimate(e: Experience, *, threshold: float = 0.0) -> Experience:
  """1 at the tokens of responses that pass, else 0."""
  passes = ((e.rewards.sum(-1) > threshold) & (e.weight > 0)).astype('float32')
  return e.replace(advantages=advantages.per_token(passes, e.response_mask))


def policy_loss(logprobs: jax.Array, e: Experience) -> tuple[Mean, dict[str, Mean]]:
  """L; a batch in which nothing passes changes nothing."""
  chosen = e.counted & (e.advantages > 0)
  return losses.next_token(logprobs, chosen), {'passes': Mean.of(chosen.any(-1), e.weight)}
