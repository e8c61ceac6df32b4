"""Policy losses that several algorithms share: the clipped surrogate, and the score function.

They differ in advantages and in options, and are one function as seen from here.
"""

import jax

from perl.objectives import losses, policy
from perl.types import Experience, Mean


def clipped(
  logprobs: jax.Array, e: Experience, *, clip: float, level: str, aggregation: str,
  max_new_tokens: int, clip_high: float | None = None, dual_clip: float = 0.0,
  correction: str = 'none', correction_cap: float = 3.0,
) -> tuple[Mean, dict[str, Mean]]:
  """max(-A rho, -A clip(rho, 1 - clip, 1 + clip_high)), aggregated: perl/objectives/policy.py.

  Args:
    logprobs: f32[B, T], of the policy that learns.
    e: with e.advantages.
    clip: bound on rho below 1, and above where clip_high is None.
    level: what rho is of: 'token', 'response' or 'sequence'.
    aggregation: how tokens become one number.
    max_new_tokens: the longest response, which 'constant' divides by.
    clip_high: bound above 1.
    dual_clip: largest loss of a token whose advantage is negative, in units of it; 0 is none.
    correction, correction_cap: how the loss of each token is weighed where the sampler computes
      otherwise than the trainer, see objectives.policy.correction.
  """
  rho = policy.ratios(logprobs, e.behaviour_logprobs, e.response_mask, level=level)
  loss = policy.clipped(rho, e.advantages, low=clip, high=clip_high, dual=dual_clip or None)
  fraction = policy.clip_fraction(rho, e.advantages, low=clip, high=clip_high)
  w = weights(e, correction=correction, correction_cap=correction_cap)
  return aggregated(
    w * loss, e, aggregation=aggregation, max_new_tokens=max_new_tokens
  ), metrics(e, clip_fraction=fraction, correction=w)


def score_function(
  logprobs: jax.Array, e: Experience, *, aggregation: str, max_new_tokens: int,
  correction: str = 'none', correction_cap: float = 3.0,
) -> tuple[Mean, dict[str, Mean]]:
  """-sg(A) log pi, aggregated: on the policy that sampled its gradient is that of E[R].

  Args:
    logprobs, e, aggregation, max_new_tokens, correction, correction_cap: as in `clipped`.
  """
  loss = losses.reinforce(logprobs, e.advantages, e.response_mask)
  w = weights(e, correction=correction, correction_cap=correction_cap)
  return aggregated(
    w * loss, e, aggregation=aggregation, max_new_tokens=max_new_tokens
  ), metrics(e, correction=w)


def weights(e: Experience, *, correction: str, correction_cap: float) -> jax.Array | float:
  """f32[B, T], what the loss of each token is multiplied by; 1 where the trainer's own log-probs
  are those of the sampler.
  """
  if e.sampler_logprobs is None or correction == 'none':
    return 1.0
  return policy.correction(e.behaviour_logprobs, e.sampler_logprobs, e.response_mask,
                           how=correction, cap=correction_cap)


def aggregated(
  values: jax.Array, e: Experience, *, aggregation: str, max_new_tokens: int
) -> Mean:
  """One Mean of f32[B, T] over the tokens of responses: objectives.policy.aggregate."""
  return policy.aggregate(
    values, e.response_mask, e.weight, how=aggregation, tokens=max_new_tokens)


def metrics(e: Experience, **tokens: jax.Array) -> dict[str, Mean]:
  """Means over the tokens that count, the advantage among them."""
  shown = {'advantage': e.advantages} | {
    name: x for name, x in tokens.items() if isinstance(x, jax.Array)}
  return {name: Mean.of(x, e.counted) for name, x in shown.items()}
