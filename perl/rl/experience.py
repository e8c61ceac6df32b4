"""From judged rollouts to experience: shaped rewards, returns, metrics; all without gradient.

What compares responses with one another (advantages, baselines) comes later, in perl/rl/update.py.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perl import masked
from perl.objectives import advantages, policy, regularizers, returns
from perl.rl import algorithms, statistics
from perl.rl.rewards import Judged
from perl.types import Experience, Mean, Rollout, Tree


def less_bad_ends(
  scores: jax.Array, finished: jax.Array, lengths: jax.Array, *, max_new_tokens: int,
  missing_eos_penalty: float = 0.0, overlong: float = 0.0,
) -> jax.Array:
  """f32[B]: the scores less what a bad end costs.

  Args:
    scores: f32[B], of reward model and rules.
    finished: bool[B], the response ends in EOS.
    lengths: [B], tokens of the response.
    max_new_tokens, missing_eos_penalty, overlong: of `make_experience`.
  """
  scores = scores - missing_eos_penalty * (~finished)
  if not overlong:
    return scores
  return scores + policy.overlong_penalty(
    lengths, longest=max_new_tokens, buffer=overlong * max_new_tokens)


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
  samples: int = 1,
  gamma: float = 1.0,
) -> Callable[..., tuple[Experience, dict[str, Mean]]]:
  """The jitted ``(rollout, judged, weight, offset=0, running={}, scale=None) -> (experience,
  metrics)``.

  Without log-probs of a reference nothing is held to it. `weight` f32[B] is 0 for filler rows.
  `offset` f32[] is taken from the scores before they are shaped: their mean over samples of the
  anchor, so that the return starts out centred. Metrics and `scores` are without it. `running` are
  the statistics of perl/rl/statistics.py. `scale` f32[] is what scores are multiplied by; None is
  that of `running` with this batch: responses that are compared with another batch's share its own.

  Args:
    max_new_tokens: R, the longest response.
    beta: weight of what holds to the anchor, see objectives.returns.shaped_rewards.
    missing_eos_penalty: taken from the score of a response that does not end.
    overlong: share of R at its end in which a response loses up to 1 of its score.
    regularizer: what holds to the anchor, of objectives.regularizers.
    regularize: 'reward', where it lowers the reward of a token, or 'loss'.
    reward_clip: bound of a score, once it is centred and scaled; 0 is none.
    samples: responses to each prompt, in turn.
    gamma: discount of the returns.

  Raises:
    ValueError: an unknown name, or what does not go together.
  """
  held_by = dict(regularizer=regularizer, regularize=regularize, regularizer_ratio=True)
  if wrong := algorithms.problems(held_by):
    raise ValueError('; '.join(wrong))
  in_reward = algorithms.in_reward(held_by)
  penalty = regularizers.SAMPLED.get(regularizer, regularizers.none)
  ends = dict(
    max_new_tokens=max_new_tokens, missing_eos_penalty=missing_eos_penalty, overlong=overlong)

  @jax.jit
  def build(
    rollout: Rollout, judged: Judged, weight: jax.Array, offset=0.0, running: Tree = None,
    scale=None,
  ):
    running, mask = running or {}, rollout.response_mask
    scores = less_bad_ends(judged.scores, rollout.finished, mask.sum(-1), **ends)
    held = judged.reference_logprobs is not None
    reference = judged.reference_logprobs if held else jnp.zeros(mask.shape)
    trainers = judged.policy_logprobs
    logprobs = rollout.logprobs if trainers is None else trainers
    now = statistics.beta_of(running, beta)
    scale = statistics.scale(running, scores, weight) if scale is None else scale
    rewards = returns.shaped_rewards(
      statistics.transformed(scores, offset=offset, scale=scale, clip=reward_clip),
      logprobs, reference, mask, beta=now if in_reward else 0.0,
      penalty=penalty if held else regularizers.none,
    )
    experience = Experience(
      tokens=rollout.tokens, mask=rollout.mask, response_mask=mask,
      behaviour_logprobs=logprobs, reference_logprobs=reference, rewards=rewards,
      returns=returns.returns_to_go(rewards, mask, gamma=gamma), scores=scores, weight=weight,
      finished=rollout.finished, beta=jnp.full(weight.shape, now), verdicts=judged.scores,
      scale=jnp.full(weight.shape, scale), reference_states=judged.reference_states,
      sampler_logprobs=None if trainers is None else rollout.logprobs,
    )
    lengths = mask.sum(-1).astype(jnp.float32)
    metrics = {
      'reward': scores, 'response_tokens': lengths,
      'finished': rollout.finished.astype(jnp.float32),
    }
    if samples > 1:
      metrics['equal_groups'] = 1.0 - advantages.informative(
        judged.scores, weight, samples=samples)
    if held:
      lost = masked.masked_sum(penalty(logprobs, reference), mask, axis=-1)
      metrics['kl'] = returns.sequence_kl(logprobs, reference, mask)
      metrics['objective'] = (1.0 - now if in_reward else 1.0) * scores - now * lost
    if judged.spread is not None:
      metrics['uncertainty'] = judged.spread
    metrics = {name: Mean.of(x, weight) for name, x in metrics.items()}
    metrics |= _extremes(scores, lengths, weight > 0)
    metrics['entropy'] = Mean.of(-logprobs, mask * weight[:, None])
    return jax.lax.stop_gradient((experience, metrics))

  return build


def _extremes(scores: jax.Array, lengths: jax.Array, counted: jax.Array) -> dict[str, Mean]:
  """The standard deviation of a batch's scores, its longest and its shortest response."""
  one = lambda x: Mean.of(x, counted.any())
  return {
    'reward_deviation': one(jnp.sqrt(masked.masked_var(scores, counted))),
    'longest_response': one(masked.largest(lengths, counted)[0]),
    'shortest_response': one(-masked.largest(-lengths, counted)[0]),
  }
