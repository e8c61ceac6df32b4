"""The update of any algorithm: its loss over the policy's log-probs, and what comes beside it.

  loss = L_policy + beta L_regularizer - c_H entropy + c_ptx L_next-token + c_V L_value

Each term is divided by its own weight over the whole minibatch (perl/train/step.py). Policy and
critic are two adapters over one base, so that one loss trains both: no term of one has a gradient
in the other's adapter. Dropout is off in every forward of RL.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from perl.models import lm, vocabulary
from perl.models.context import Rows
from perl.models.transformer import Transformer
from perl.objectives import losses, policy, regularizers
from perl.options import bound, check, names
from perl.rl import algorithms, roles, statistics, surrogate
from perl.types import Experience, Mean, Tree

Loss = Callable[[dict[str, Tree], Tree, Experience, jax.Array],
                tuple[dict[str, Mean], dict[str, Mean]]]
"""(adapters by role, base, experience, key) -> (terms, metrics)."""


def make_loss(
  model: Transformer, algorithm: str, *, max_new_tokens: int, temperature: float = 1.0,
  regularizer_ratio: bool = False, entropy: float = 0.0, ptx: float = 0.0,
  value_weight: float = 1.0, own_behaviour: bool = False, **options: Any,
) -> Loss:
  """The loss of the train step.

  Args:
    model: the base's module.
    algorithm: a file of perl/rl/algorithms.
    max_new_tokens: R, the last columns of a rollout, where responses lie.
    temperature: at which the rollout was sampled.
    regularizer_ratio: a regularizer in the loss is weighed by pi / pi_old, through which its
      gradient is that of the divergence that it estimates (DeepSeek-V3.2).
    entropy: weight of the exact entropy of each token's distribution.
    ptx: weight of the next-token loss of e.aside (PPO-ptx: InstructGPT, eq. 2).
    value_weight: of the critic's loss.
    own_behaviour: behaviour log-probs are those of this very forward pass: of an update that is
      the only one on its rollout, whose ratio is then 1 exactly.
    options: those of algorithms (`known_options`); what is missing is the algorithm's own.

  Raises:
    ValueError: an option that nobody declares, or options that do not go together.
  """
  module = algorithms.find(algorithm)
  resolved = _resolved(algorithm, options, max_new_tokens)
  if wrong := algorithms.problems(resolved | {'regularizer_ratio': regularizer_ratio}):
    raise ValueError('; '.join(wrong))
  name, samples = resolved['regularizer'], resolved['samples']
  learnt = 'critic' in algorithms.trains(algorithm, resolved)
  held = resolved['regularize'] == 'loss' and name != 'none'
  policy_loss = bound(module.policy_loss, resolved)
  value_loss = bound(module.value_loss, resolved) if learnt else None
  aggregated = bound(surrogate.aggregated, resolved)

  def regularized(h: jax.Array, logprobs: jax.Array, rho: jax.Array, e: Experience, whose) -> Mean:
    if name in regularizers.EXACT:
      values = _at_response(vocabulary.read(
        regularizers.EXACT[name], model, *whose, h, e.reference_states, temperature=temperature), e)
    else:
      inside = lambda x: jnp.where(e.response_mask, x, 0.0)
      values = regularizers.SAMPLED[name](inside(logprobs), inside(e.reference_logprobs))
      values = values * rho if regularizer_ratio else values
    return aggregated(e.beta[:, None] * values, e)

  def loss(adapters: dict[str, Tree], base: Tree, e: Experience, key: jax.Array):
    del key
    start = e.tokens.shape[1] - max_new_tokens
    prompts = dict(start=start, shared=samples)
    whose = roles.of(base, 'policy'), adapters['policy']
    h = lm.hidden(model, *whose, e.tokens, e.mask, read=slice(start - 1, e.tokens.shape[1] - 1),
                  **prompts)
    logprobs = lm.logprobs_of(
      model, *whose, h, e.tokens, e.mask, temperature=temperature, start=start)
    if own_behaviour:
      e = e.replace(behaviour_logprobs=jax.lax.stop_gradient(logprobs),
                    sampler_logprobs=_sampler(e))
    rho = policy.ratios(logprobs, e.behaviour_logprobs, e.response_mask)
    terms, metrics = {}, {}
    if learnt:
      v = critic_values(model, adapters, base, e, prompts)
      metrics['value'] = Mean.of(v, e.counted)
      terms['value'] = value_loss(v, e)
      e = e if e.values is not None else e.replace(values=jax.lax.stop_gradient(v))
    terms['policy'], more = policy_loss(logprobs, e)
    if held:
      terms['regularizer'] = regularized(h, logprobs, rho, e, whose)
    if entropy:
      values = _at_response(vocabulary.read(
        regularizers.entropy, model, *whose, h, temperature=temperature), e)
      metrics['token_entropy'] = Mean.of(values, e.counted)
      terms['entropy'] = aggregated(values, e)
    if ptx:
      aside = lm.logprobs(
        model, *whose, e.aside['tokens'], Rows(e.aside['mask'], right_padded=True))
      terms['ptx'] = losses.next_token(aside, e.aside['loss_mask'])
    metrics |= {f'{term}_loss': mean for term, mean in terms.items()}
    weights = {'entropy': -entropy, 'ptx': ptx, 'value': value_weight}
    terms = {term: weights.get(term, 1.0) * mean for term, mean in terms.items()}
    return terms, metrics | _distances(logprobs, e) | more

  return loss


def _sampler(e: Experience) -> jax.Array:
  """f32[B, T], as sampled."""
  return e.behaviour_logprobs if e.sampler_logprobs is None else e.sampler_logprobs


def _distances(logprobs: jax.Array, e: Experience) -> dict[str, Mean]:
  """sampler_gap: |log pi_old - log pi_sampler| a token, made by rounding alone: little in float32,
  more in narrower types (where pi_old is the sampler itself, that of updates is in it too).
  kl_old: KL(pi_old || pi) a token, how far updates have gone since the rollout.
  """
  known = logprobs if e.sampler_logprobs is None else e.behaviour_logprobs
  return {
    'sampler_gap': Mean.of(abs(known - _sampler(e)), e.counted),
    'kl_old': Mean.of(regularizers.of_older(logprobs, e.behaviour_logprobs), e.counted),
  }


def make_prepare(
  model: Transformer, algorithm: str, *, max_new_tokens: int, microbatches: int = 1,
  mask_truncated: bool = False, **options: Any,
) -> Callable:
  """What comes before the first update on a batch: old values, advantages, statistics.

  Args:
    model, algorithm, max_new_tokens, options: as `make_loss`.
    microbatches: parts in which the critic reads the batch.
    mask_truncated: what does not end is compared with the others, but not learnt from.

  Returns:
    (state, base, experience) -> (state, experience), for perl.train.step.

  Raises:
    ValueError: an option that nobody declares.
  """
  module = algorithms.find(algorithm)
  resolved = _resolved(algorithm, options, max_new_tokens)
  advanced = bound(statistics.advanced, resolved)
  before = getattr(module, 'VALUES_BEFORE', False)

  def prepare(state, base: Tree, e: Experience):
    if before:
      prompts = dict(start=e.tokens.shape[1] - max_new_tokens, shared=resolved['samples'])
      read = lambda part: critic_values(model, state.adapters, base, part, prompts)
      e = e.replace(values=_in_parts(read, e, microbatches))
    e = bound(module.estimate, resolved | {'running': state.running})(e)
    running = advanced(state.running, e)
    if mask_truncated:
      e = e.replace(weight=jnp.where(e.finished, e.weight, 0.0))
    return state.replace(running=running), e

  return prepare


def known_options() -> frozenset[str]:
  """What `make_loss` and `make_prepare` know, of their own and of the algorithms.

  Both may be given all of them: each reads what is its own.
  """
  own = {*names(make_loss), *names(make_prepare), *names(statistics.advanced)}
  return algorithms.known_options() | own


def _resolved(algorithm: str, options: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
  """All options of an algorithm, its own where none is given."""
  check(options, known_options(), 'an algorithm')
  return algorithms.resolve(algorithm, dict.fromkeys(algorithms.OPEN) | options) | {
    'max_new_tokens': max_new_tokens}


def critic_values(
  model: Transformer, adapters: dict[str, Tree], base: Tree, e: Experience, prompts: dict
) -> jax.Array:
  """f32[B, T]: V of the critic's adapter."""
  return lm.values(
    model, roles.of(base, 'critic'), adapters['critic'], e.tokens, e.mask, **prompts)


def _in_parts(function: Callable, e: Experience, parts: int) -> jax.Array:
  """function(e) f[B, ...], a part of the rows at a time."""
  if parts == 1:
    return function(e)
  cut = lambda x: x.reshape(parts, -1, *x.shape[1:])
  values = jax.lax.map(function, jax.tree.map(cut, e))
  return values.reshape(-1, *values.shape[2:])


def _at_response(values: jax.Array, e: Experience) -> jax.Array:
  """f32[B, R] of the responses' columns as f32[B, T], 0 where no response is."""
  whole = jnp.pad(values, ((0, 0), (e.tokens.shape[1] - values.shape[1], 0)))
  return jnp.where(e.response_mask, whole, 0.0)
