"""REINFORCE with a baseline, as in PERL (Sidahmed et al., arXiv 2403.10704, sec. 3).

  L_PG = -sum_t log pi(a_t | x_t) sg(Z_t - V(x_t)),      L_V = sum_t (Z_t - V(x_t))^2

with Z_t the return to go of the shaped rewards, gamma = 1. Both are sums over a response and means
over the batch (aggregation: sequence-sum). The policy and the value model are two adapters over one
base, so that one loss trains both: neither term has a gradient in the other's adapter.
"""

from collections.abc import Callable

import jax

from perl.models import lm
from perl.models.transformer import Transformer
from perl.objectives import losses
from perl.rl import roles
from perl.types import Experience, Mean, Tree

BASELINES = ('value', 'batch_mean', 'leave_one_out')


def trains(baseline: str) -> tuple[str, ...]:
  """The roles that learn under a baseline.

  Raises:
    ValueError: an unknown baseline.
  """
  if baseline not in BASELINES:
    raise ValueError(f'expected rl.baseline among {BASELINES}, found {baseline!r}')
  return ('policy', 'critic') if baseline == 'value' else ('policy',)


def make_loss(
  model: Transformer, *, max_new_tokens: int, temperature: float = 1.0, baseline: str = 'value',
  samples: int = 1,
) -> Callable[[dict[str, Tree], Tree, Experience, jax.Array], tuple[Mean, dict[str, Mean]]]:
  """The loss ``(adapters, base, experience, key) -> (Mean, metrics)`` of the train step.

  Args:
    model: the base's module.
    max_new_tokens: R, the last columns of a rollout, where responses lie.
    temperature: at which the rollout was sampled.
    baseline: 'value' (adapters['critic']), or no critic at all: 'batch_mean', 'leave_one_out'
      (RLOO), which the experience has.
    samples: responses to each prompt, rows in turn, which share the prompt's computation.
  """
  learnt = 'critic' in trains(baseline)

  def loss(adapters: dict[str, Tree], base: Tree, e: Experience, key: jax.Array):
    del key  # Dropout is off in every forward of RL.
    mask, weight = e.response_mask, e.weight
    prompts = dict(start=e.tokens.shape[1] - max_new_tokens, shared=samples)
    logprobs = lm.logprobs(
      model, roles.of(base, 'policy'), adapters['policy'], e.tokens, e.mask,
      temperature=temperature, **prompts,
    )
    z = e.returns
    if learnt:
      v = lm.values(
        model, roles.of(base, 'critic'), adapters['critic'], e.tokens, e.mask, **prompts)
      critic = losses.value(v, z, mask)
    else:
      v, critic = e.baseline, 0.0
    policy = losses.reinforce(logprobs, z - v, mask)
    gap = logprobs - e.behaviour_logprobs
    counted = mask & (weight > 0)[:, None]
    metrics = {
      'policy_loss': Mean.of(policy, weight),
      'sampler_gap': Mean.of(abs(gap), counted),  # decoding against teacher forcing; rounding only
      'advantage': Mean.of(z - v, counted),
    }
    if learnt:
      metrics['value_loss'] = Mean.of(critic, weight)
      metrics['value'] = Mean.of(v, counted)
    return Mean.of(policy + critic, weight), metrics

  return loss
