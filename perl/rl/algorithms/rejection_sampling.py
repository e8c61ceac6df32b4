"""Rejection-sampling fine-tuning: the best of k responses is imitated (Llama 2, arXiv 2307.09288,
3.2.3; RAFT: Dong et al. 2023, arXiv 2304.06767).

  L = -mean over the tokens of argmax_i r(x, y_i) of log pi(a_t | x_t)

A prompt whose responses all score the same has no best one, and teaches nothing: of wrong answers
alone none is imitated. With rl.steps = 1 and several epochs it is the offline form: one round of
samples of the anchor.
"""

import jax
import jax.numpy as jnp

from perl.objectives import advantages, losses
from perl.types import Experience, Mean

OWN = {'samples': 8, 'regularizer': 'none'}
JUDGES_BY = 'scores'


def estimate(e: Experience, *, samples: int) -> Experience:
  """1 at the tokens of the best response to each prompt, the first of equals; else 0."""
  scores = jnp.where(e.weight > 0, e.scores, -jnp.inf).reshape(-1, samples)
  best = jax.nn.one_hot(scores.argmax(-1), samples).reshape(-1)
  best *= advantages.informative(e.scores, e.weight, samples=samples)
  return e.replace(advantages=advantages.per_token(best, e.response_mask))


def policy_loss(logprobs: jax.Array, e: Experience) -> tuple[Mean, dict[str, Mean]]:
  """L, the loss of SFT."""
  chosen = e.counted & (e.advantages > 0)
  return losses.next_token(logprobs, chosen), {
    'chosen_reward': Mean.of(e.scores, chosen.any(-1))}
