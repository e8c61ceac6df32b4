"""From rollouts to experience: scores, anchor log-probs, shaped rewards; all without gradient.

What compares responses with one another (advantages, baselines) comes later, in perl/rl/update.py.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perl import masked, trees
from perl.models import lm
from perl.models.transformer import Transformer
from perl.objectives import policy, regularizers, returns
from perl.peft import adapters
from perl.preference import reward_model
from perl.rl import algorithms, roles, statistics
from perl.types import Experience, Mean, Rollout, Tree

FORWARDS = ('auto', 'separate', 'stacked')
"""How reference and reward model read the rollouts: one after another, or as two adapters of one
forward pass. The fastest of the two that was measured on a platform is its 'auto' (on CPU
experiments/results/choices_cpu.json; elsewhere the default is the same until it is measured)."""


@functools.cache  # the same function for the same arguments: compiled once, wherever it is made
def make_experience(
  model: Transformer,
  *,
  max_new_tokens: int,
  beta: float,
  temperature: float = 1.0,
  missing_eos_penalty: float = 0.0,
  overlong: float = 0.0,
  samples: int = 1,
  forwards: str = 'auto',
  regularizer: str = 'kl',
  regularize: str = 'reward',
  reward_weight: float = 1.0,
  reward_clip: float = 0.0,
  gamma: float = 1.0,
  ensemble: str = 'mean',
  ensemble_penalty: float = 0.0,
) -> Callable[..., tuple[Experience, dict[str, Mean]]]:
  """The jitted ``(base, frozen, rollout, weight, offset=0, extra=0, running={})
  -> (experience, metrics)``.

  `frozen` holds the adapters that do not learn: 'reference' (the anchor, an explicit adapter) and
  'reward' (with its head). Both are adapters over the policy's own base, or over their own where
  base is a `roles.Bases`. Without 'reference' nothing is held to it and its forward pass is not
  made; without 'reward' the scores are those of rules alone. `offset` f32[] is taken from the
  scores before they are shaped: their mean over samples of the anchor, so that the return starts
  out centred. Metrics and `scores` are without it. `extra` f32[B] is what rules add to the scores
  (perl/rl/rules). `running` are the statistics of perl/rl/statistics.py.

  Args:
    model: the base's module; all roles share it.
    max_new_tokens: R, the last columns of a rollout; the response starts before them.
    beta: weight of what holds to the anchor, see objectives.returns.shaped_rewards.
    temperature: at which the policy samples; log-probs are taken at it throughout.
    missing_eos_penalty: subtracted from the score of a response that was cut off.
    overlong: share of R at its end in which a response loses up to 1 of its score.
    samples: responses to each prompt, rows in turn, which share the prompt's computation.
    forwards: of FORWARDS; adapters that cannot be stacked are read one after another.
    regularizer: of objectives.regularizers, lowers the reward of each token, or adds to the loss.
    regularize: where it does so, 'reward' or 'loss'.
    reward_weight: of the reward model's score; 0 reads no reward model, and frozen needs none.
    reward_clip: bound of a score, once it is centred and scaled; 0 is none.
    gamma: discount of the returns.
    ensemble, ensemble_penalty: how the scores of several reward models make one, see
      reward_model.combine; metrics then have 'uncertainty', the mean variance over them.

  Raises:
    ValueError: an unknown name, or what does not go together.
  """
  wrong = algorithms.problems(dict(
    regularizer=regularizer, regularize=regularize, regularizer_ratio=True))
  if wrong:
    raise ValueError('; '.join(wrong))
  if forwards not in FORWARDS:
    raise ValueError(f'expected rl.forwards among {FORWARDS}, found {forwards!r}')

  in_reward = regularize == 'reward' and regularizer != 'none'
  penalty = regularizers.SAMPLED.get(regularizer, regularizers.none)
  exact = regularizer in regularizers.EXACT

  @jax.jit
  def build(
    base: Tree, frozen: dict[str, Tree], rollout: Rollout, weight: jax.Array, offset=0.0, extra=0.0,
    running: Tree = None,
  ):
    running = running or {}
    mask, start = rollout.response_mask, rollout.tokens.shape[1] - max_new_tokens
    read = _stacked if forwards == 'stacked' and _stackable(base, frozen) else _separate
    scores, spread, reference, states = read(
      model, base, frozen, rollout, dict(start=start, shared=samples), temperature,
      dict(how=ensemble, penalty=ensemble_penalty))
    held = 'reference' in frozen
    scores = (scores if reward_weight == 1 else reward_weight * scores) + extra
    scores = scores - missing_eos_penalty * (~rollout.finished)
    if overlong:
      scores = scores + policy.overlong_penalty(
        mask.sum(-1), longest=max_new_tokens, buffer=overlong * max_new_tokens)
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
      beta=jnp.full(weight.shape, now), reference_states=states if exact else None,
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
    if adapters.members(frozen.get('reward', {})):
      metrics['uncertainty'] = spread
    metrics = {name: Mean.of(x, weight) for name, x in metrics.items()}
    metrics['entropy'] = Mean.of(-rollout.logprobs, mask * weight[:, None])
    return jax.lax.stop_gradient((experience, metrics))

  return build


def _separate(model, base, frozen, rollout, prompts, temperature, ensemble):
  """(scores, their spread f32[B], reference log-probs f32[B, T], its states or None), by a forward
  pass each.
  """
  tokens, mask = rollout.tokens, rollout.mask
  scores = spread = jnp.zeros(len(tokens))
  if 'reward' in frozen:
    scores, spread = reward_model.score(
      model, roles.of(base, 'reward'), frozen['reward'], tokens, mask,
      response_mask=rollout.response_mask, **ensemble, **prompts)
  if 'reference' not in frozen:
    return scores, spread, jnp.zeros(tokens.shape), None
  own = roles.of(base, 'reference'), frozen['reference']
  states = lm.hidden(
    model, *own, tokens, mask, read=slice(prompts['start'] - 1, tokens.shape[1] - 1), **prompts)
  reference = lm.logprobs_of(
    model, *own, states, tokens, mask, temperature=temperature, start=prompts['start'])
  return scores, spread, reference, states


def _stackable(base: Tree, frozen: dict[str, Tree]) -> bool:
  """Whether both adapters are of one shape, over one base, and the head reads no more than h."""
  if isinstance(base, roles.Bases) or {'reference', 'reward'} - set(frozen):
    return False
  if lm.head_reads(frozen['reward']['head']):
    return False
  if adapters.members(frozen['reward']):
    return False
  shapes = [jax.tree.map(jnp.shape, _body(frozen[role])) for role in ('reference', 'reward')]
  return jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1]) and shapes[0] == shapes[1]


def _body(adapter: Tree) -> Tree:
  return {name: tree for name, tree in adapter.items() if name != 'head'}


def _stacked(model, base, frozen, rollout, prompts, temperature, ensemble):
  """The same by one forward pass over both adapters: each weight of the base is read once."""
  del ensemble  # there is none
  tokens, mask, start = rollout.tokens, rollout.mask, prompts['start']
  both = trees.stack([_body(frozen['reference']), _body(frozen['reward'])])
  read = slice(start - 1, tokens.shape[1])
  states = jax.vmap(
    lambda adapter: lm.hidden(model, base, adapter, tokens, mask, read=read, **prompts))(both)
  reference = lm.logprobs_of(
    model, base, frozen['reference'], states[0][:, :-1], tokens, mask, temperature=temperature,
    start=start)
  last = masked.last_index(mask) - read.start
  features = jnp.take_along_axis(states[1], last[:, None, None], 1)[:, 0].astype(jnp.float32)
  scores = lm.score_of(frozen['reward']['head'], features)
  return scores, jnp.zeros_like(scores), reference, states[0][:, :-1]
