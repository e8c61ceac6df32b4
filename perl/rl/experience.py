"""From rollouts to experience: scores, anchor log-probs, shaped rewards; all without gradient."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perl import masked
from perl.models import lm
from perl.models.transformer import Transformer
from perl.objectives import returns
from perl.types import Experience, Mean, Rollout, Tree


@functools.cache  # the same function for the same arguments: compiled once, wherever it is made
def make_experience(
  model: Transformer,
  *,
  max_new_tokens: int,
  beta: float,
  temperature: float = 1.0,
  missing_eos_penalty: float = 0.0,
) -> Callable[..., tuple[Experience, dict[str, Mean]]]:
  """The jitted function ``(base, frozen, rollout, weight, offset=0) -> (experience, metrics)``.

  `frozen` holds the adapters that do not learn: 'reference' (the anchor, an explicit adapter) and
  'reward' (with its head). Both are adapters over the policy's own base. `offset` f32[] is taken
  from the scores before they are shaped: their mean over samples of the anchor, so that the return
  starts out centred. Metrics and `scores` are without it.

  Args:
    model: the base's module; all roles share it.
    max_new_tokens: R, the last columns of a rollout; the response starts before them.
    beta: weight of the KL to the anchor, see objectives.returns.shaped_rewards.
    temperature: at which the policy samples; log-probs are taken at it throughout.
    missing_eos_penalty: subtracted from the score of a response that was cut off.
  """

  @jax.jit
  def build(base: Tree, frozen: dict[str, Tree], rollout: Rollout, weight: jax.Array, offset=0.0):
    tokens, mask = rollout.tokens, rollout.mask
    start = tokens.shape[1] - max_new_tokens
    scores = lm.score(
      model, base, frozen['reward'], tokens, mask, response_mask=rollout.response_mask
    )
    scores = scores - missing_eos_penalty * (~rollout.finished)
    reference = lm.logprobs(
      model, base, frozen['reference'], tokens, mask, temperature=temperature, start=start
    )
    rewards = returns.shaped_rewards(
      scores - offset, rollout.logprobs, reference, rollout.response_mask, beta=beta
    )
    z = returns.returns_to_go(rewards, rollout.response_mask)
    experience = Experience(
      tokens=tokens, mask=mask, response_mask=rollout.response_mask,
      behaviour_logprobs=rollout.logprobs, reference_logprobs=reference, rewards=rewards, returns=z,
      batch_mean=returns.batch_mean_baseline(z, rollout.response_mask, weight), scores=scores,
      weight=weight,
    )
    kl = returns.sequence_kl(rollout.logprobs, reference, rollout.response_mask)
    entropy = masked.masked_sum(-rollout.logprobs, rollout.response_mask, axis=-1)
    metrics = {
      'reward': scores,
      'kl': kl,
      'objective': (1.0 - beta) * scores - beta * kl,
      'entropy': entropy,
      'response_tokens': rollout.response_mask.sum(-1).astype(jnp.float32),
      'finished': rollout.finished.astype(jnp.float32),
    }
    metrics = {name: Mean.of(x, weight) for name, x in metrics.items()}
    return jax.lax.stop_gradient((experience, metrics))

  return build
