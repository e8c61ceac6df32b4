"""From rollouts to experience: scores, anchor log-probs, shaped rewards; all under stop-gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from perl import masked
from perl.models import lm
from perl.models.transformer import Transformer
from perl.objectives import returns
from perl.types import Experience, Mean, Rollout, Tree


def make_experience(
  model: Transformer,
  *,
  prompt_tokens: int,
  beta: float,
  temperature: float = 1.0,
  missing_eos_penalty: float = 0.0,
) -> Callable[[Tree, dict[str, Tree], Rollout, jax.Array], tuple[Experience, dict[str, Mean]]]:
  """The jitted function ``(base, frozen, rollout, weight) -> (experience, metrics)``.

  `frozen` holds the adapters that do not learn: 'reference' (the anchor, an explicit adapter) and
  'reward' (with its head). Both are adapters over the policy's own base.

  Args:
    model: the base's module; all roles share it.
    prompt_tokens: P, the width of the prompts; the response starts there.
    beta: weight of the KL to the anchor, see objectives.returns.shaped_rewards.
    temperature: at which the policy samples; log-probs are taken at it throughout.
    missing_eos_penalty: subtracted from the score of a response that was cut off.
  """

  @jax.jit
  def build(base: Tree, frozen: dict[str, Tree], rollout: Rollout, weight: jax.Array):
    tokens, mask = rollout.tokens, rollout.mask
    scores = lm.score(model, base, frozen['reward'], tokens, mask)
    scores = scores - missing_eos_penalty * (~rollout.finished)
    reference = lm.logprobs(
      model, base, frozen['reference'], tokens, mask, temperature=temperature, start=prompt_tokens
    )
    rewards = returns.shaped_rewards(
      scores, rollout.logprobs, reference, rollout.response_mask, beta=beta
    )
    experience = Experience(
      tokens, mask, rollout.response_mask, rollout.logprobs, reference, rewards, scores, weight
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
