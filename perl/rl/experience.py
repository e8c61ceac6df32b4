"""From judged rollouts to experience: shaped rewards, returns, metrics; all without gradient.

What compares responses with one another (advantages, baselines) comes later, in perl/rl/update.py.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perl import masked
from perl.objectives import policy, regularizers, returns
from perl.rl import algorithms, statistics
from perl.rl.rewards import Judged
from perl.types import Experience, Mean, Rollout, Tree


@functools.cache  # the same function for the same arguments: compiled once, wherever it is made
def make_experience(
  *,
  max_new_tokens: int,
  beta: float,
  missing_eos_penalty: float = 0.0,
  overlong: float = 0.0,
  regularizer: str = 'kl',
  regularize: str = 'reward',
  reward_clip: float = 0.0,
  gamma: float = 1.0,
) -> Callable[..., tuple[Experience, dict[str, Mean]]]:
  """The jitted ``(rollout, judged, weight, offset=0, running={}) -> (experience, metrics)``.

  Without log-probs of a reference nothing is held to it. `weight` f32[B] is 0 for filler rows.
  `offset` f32[] is taken from the scores before they are shaped: their mean over samples of the
  anchor, so that the return starts out centred. Metrics and `scores` are without it. `running` are
  the statistics of perl/rl/statistics.py.

  Args:
    max_new_tokens: R, the longest response.
    beta: weight of what holds to the anchor, see objectives.returns.shaped_rewards.
    missing_eos_penalty: taken from the score of a response that does not end.
    overlong: share of R at its end in which a response loses up to 1 of its score.
    regularizer: what holds to the anchor, of objectives.regularizers.
    regularize: 'reward', where it lowers the reward of a token, or 'loss'.
    reward_clip: bound of a score, once it is centred and scaled; 0 is none.
    gamma: discount of the returns.

  Raises:
    ValueError: an unknown name, or what does not go together.
  """
  if wrong := algorithms.problems(dict(
      regularizer=regularizer, regularize=regularize, regularizer_ratio=True)):
    raise ValueError('; '.join(wrong))
  in_reward = regularize == 'reward' and regularizer != 'none'
  penalty = regularizers.SAMPLED.get(regularizer, regularizers.none)

  def scored(rollout: Rollout, judged: Judged) -> jax.Array:
    """f32[B], with the penalties of how a response ends."""
    scores = judged.scores - missing_eos_penalty * (~rollout.finished)
    if overlong:
      scores = scores + policy.overlong_penalty(
        rollout.response_mask.sum(-1), longest=max_new_tokens, buffer=overlong * max_new_tokens)
    return scores

  @jax.jit
  def build(
    rollout: Rollout, judged: Judged, weight: jax.Array, offset=0.0, running: Tree = None
  ):
    running, mask = running or {}, rollout.response_mask
    scores, held = scored(rollout, judged), judged.reference_logprobs is not None
    reference = judged.reference_logprobs if held else jnp.zeros(mask.shape)
    now = statistics.beta_of(running, beta)
    rewards = returns.shaped_rewards(
      statistics.transformed(scores, weight, running, offset=offset, clip=reward_clip),
      rollout.logprobs, reference, mask, beta=now if in_reward else 0.0,
      penalty=penalty if held else regularizers.none,
    )
    experience = Experience(
      tokens=rollout.tokens, mask=rollout.mask, response_mask=mask,
      behaviour_logprobs=rollout.logprobs, reference_logprobs=reference, rewards=rewards,
      returns=returns.returns_to_go(rewards, mask, gamma=gamma), scores=scores, weight=weight,
      beta=jnp.full(weight.shape, now), reference_states=judged.reference_states,
    )
    metrics = {
      'reward': scores,
      'response_tokens': mask.sum(-1).astype(jnp.float32),
      'finished': rollout.finished.astype(jnp.float32),
    }
    if held:
      lost = masked.masked_sum(penalty(rollout.logprobs, reference), mask, axis=-1)
      metrics['kl'] = returns.sequence_kl(rollout.logprobs, reference, mask)
      metrics['objective'] = (1.0 - now if in_reward else 1.0) * scores - now * lost
    if judged.spread is not None:
      metrics['uncertainty'] = judged.spread
    metrics = {name: Mean.of(x, weight) for name, x in metrics.items()}
    metrics['entropy'] = Mean.of(-rollout.logprobs, mask * weight[:, None])
    return jax.lax.stop_gradient((experience, metrics))

  return build
