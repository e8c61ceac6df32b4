"""What responses are worth: one path for training, evaluation, judging and best-of-n.

  score(x, y) = w r(x, y) + sum_k w_k rule_k(x, y)

with r the reward model's score, or what an ensemble's members say together
(perl/preference/reward_model.py), and rules of perl/rl/rules. The reference reads the same rows,
for the KL: one after the other, or both in one forward pass.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from perl import masked, trees
from perl.data.examples import Example
from perl.models import lm
from perl.models.transformer import Transformer
from perl.peft import adapters
from perl.preference import reward_model
from perl.rl import roles
from perl.rl.rules import Rules
from perl.types import Batch, Rollout, Tree

FORWARDS = ('auto', 'separate', 'stacked')
"""How reference and reward model read the rollouts: one after another, or as two adapters of one
forward pass. The fastest of the two that was measured on a platform is its 'auto' (on CPU
experiments/results/choices_cpu.json; elsewhere the default is the same until it is measured)."""


class Judged(struct.PyTreeNode):
  """What frozen adapters, and rules, say of B responses."""

  scores: jax.Array  # f32[B]
  spread: jax.Array | None = None  # f32[B], variance over the members of an ensemble
  reference_logprobs: jax.Array | None = None  # f32[B, T]; None without a reference
  reference_states: jax.Array | None = None  # f[B, R, D], after the reference's last norm
  policy_logprobs: jax.Array | None = None  # f32[B, T], of the trainer's forward pass; where asked
  left_out: jax.Array | None = None  # bool[B], a rule gives no reward: the response teaches nothing


class Rewards:
  """Scores rollouts by frozen adapters over the policy's base, and by rules.

  Args:
    judge: of `make_judge`.
    frozen: the adapters that do not learn: 'reference' (the anchor, an explicit adapter) and
      'reward' (with its head); what is missing is not read.
    rules: what scores texts or tokens too.
    reward_weight: w, of the reward model's score.
    max_new_tokens: R, the last columns of a rollout, where responses lie.
    decode: ids of a response -> its text.
    place: a batch of arrays -> the batch on the mesh.
  """

  def __init__(
    self, judge: Callable, frozen: dict[str, Tree], rules: Rules, *, reward_weight: float = 1.0,
    max_new_tokens: int, decode: Callable[[list[int]], str],
    place: Callable[[Batch], Batch] = lambda batch: batch,
  ):
    self.judge, self.frozen, self.rules = judge, frozen, rules
    self.reward_weight, self.max_new_tokens = reward_weight, max_new_tokens
    self.decode, self.place = decode, place

  def __call__(
    self, base: Tree, rollout: Rollout, examples: Sequence[Example], policy: Tree | None = None
  ) -> tuple[Judged, dict[str, np.ndarray]]:
    """(what is said of the responses, {rule: f32[B], its own part before it is weighed}).

    A rule's part is NaN where it gives no reward; such a response is `left_out`, and its score
    holds what the others say.

    Args:
      base: that the frozen adapters lie over, or `roles.Bases`.
      rollout: of B responses.
      examples: B, those of the prompts; read by rules alone.
      policy: the adapter that sampled, where its log-probs shall be the trainer's.
    """
    judged = self.judge(base, self.roles(policy), rollout)
    if not self.rules:
      return judged.replace(scores=self._weighed(judged.scores)), {}
    texts = self.texts(rollout) if self.rules.read_texts else []
    responses = lambda x: x[:, -self.max_new_tokens:]
    each = self.rules.each(
      examples, texts, responses(rollout.tokens), responses(rollout.response_mask))
    placed = self.place({'total': self.rules.total(each), 'left_out': left_out(each)})
    scores = _sum(judged.scores, placed['total'], self.reward_weight)
    return judged.replace(scores=scores, left_out=placed['left_out']), each

  def roles(self, policy: Tree | None) -> dict[str, Tree]:
    """The adapters that a rollout is read with."""
    return self.frozen if policy is None else self.frozen | {'policy': policy}

  def of_scores(
    self, scores: np.ndarray, examples: Sequence[Example], texts: Sequence[str],
    ids: tuple[np.ndarray, np.ndarray],
  ) -> np.ndarray:
    """f32[N]: what texts are worth whose score by the reward model is known; NaN where a rule
    gives no reward.

    Args:
      scores: f32[N], of the reward model.
      examples, texts: N, the prompts' examples and the responses to them.
      ids: (tokens i32[N, R], mask) of the responses, for rules over tokens.
    """
    if not self.rules:
      return np.asarray(self._weighed(scores))
    each = self.rules.each(examples, texts, *ids)
    total = np.where(left_out(each), np.nan, self.rules.total(each))
    return np.asarray(_sum(scores, total, self.reward_weight))

  def texts(self, rollout: Rollout) -> list[str]:
    """The text of each response."""
    tokens, mask = jax.device_get((rollout.tokens, rollout.response_mask))
    return [self.decode(ids[counts].tolist()) for ids, counts in zip(tokens, mask)]

  def _weighed(self, scores: jax.Array) -> jax.Array:
    return scores if self.reward_weight == 1 else self.reward_weight * scores


def left_out(each: dict[str, np.ndarray]) -> np.ndarray:
  """bool[N]: the responses that some rule gives no reward."""
  return np.any([np.isnan(values) for values in each.values()], 0)


@functools.partial(jax.jit, static_argnums=2)
def _sum(scores: jax.Array, total: jax.Array, weight: float) -> jax.Array:
  return (scores if weight == 1 else weight * scores) + total


@functools.cache  # the same function for the same arguments: compiled once, wherever it is made
def make_judge(
  model: Transformer, *, max_new_tokens: int, temperature: float = 1.0, samples: int = 1,
  forwards: str = 'auto', ensemble: str = 'mean', ensemble_penalty: float = 0.0,
  states: bool = False,
) -> Callable[[Tree, dict[str, Tree], Rollout], Judged]:
  """The jitted ``(base, frozen, rollout) -> Judged``, without gradient.

  With the policy's adapter among `frozen`, its log-probs are read as an update reads them.

  Args:
    model: the base's module; all roles share it.
    max_new_tokens: R, the last columns of a rollout; the response starts before them.
    temperature: at which the policy samples; log-probs are taken at it throughout.
    samples: responses in turn that share their prompt, which passes through the model once.
    forwards: of FORWARDS.
    ensemble, ensemble_penalty: how the scores of several reward models make one, see
      reward_model.combine.
    states: keep the reference's hidden states, which exact divergences read.

  Raises:
    ValueError: an unknown `forwards`.
  """
  if forwards not in FORWARDS:
    raise ValueError(f'expected rl.forwards among {FORWARDS}, found {forwards!r}')

  @jax.jit
  def judge(base: Tree, frozen: dict[str, Tree], rollout: Rollout) -> Judged:
    read = _stacked if forwards == 'stacked' and _stackable(base, frozen) else _separate
    prompts = dict(start=rollout.tokens.shape[1] - max_new_tokens, shared=samples)
    judged = read(model, base, frozen, rollout, prompts, temperature,
                  dict(how=ensemble, penalty=ensemble_penalty))
    if 'policy' in frozen:
      own = roles.of(base, 'policy'), frozen['policy']
      judged = judged.replace(policy_logprobs=_logprobs(
        model, own, _states(model, own, rollout, prompts), rollout, prompts, temperature))
    return jax.lax.stop_gradient(judged if states else judged.replace(reference_states=None))

  return judge


def _separate(model, base, frozen, rollout, prompts, temperature, ensemble) -> Judged:
  """By a forward pass each."""
  tokens, mask = rollout.tokens, rollout.mask
  judged = Judged(jnp.zeros(len(tokens)))
  if 'reward' in frozen:
    scores, spread = reward_model.score(
      model, roles.of(base, 'reward'), frozen['reward'], tokens, mask,
      response_mask=rollout.response_mask, **ensemble, **prompts)
    judged = Judged(scores, spread if adapters.members(frozen['reward']) else None)
  if 'reference' not in frozen:
    return judged
  own = roles.of(base, 'reference'), frozen['reference']
  states = _states(model, own, rollout, prompts)
  reference = _logprobs(model, own, states, rollout, prompts, temperature)
  return judged.replace(reference_logprobs=reference, reference_states=states)


def _states(model, own: tuple[Tree, Tree], rollout: Rollout, prompts: dict) -> jax.Array:
  """f[B, R, D] of the positions that predict the responses, by (base, adapter)."""
  read = slice(prompts['start'] - 1, rollout.tokens.shape[1] - 1)
  return lm.hidden(model, *own, rollout.tokens, rollout.mask, read=read, **prompts)


def _logprobs(model, own, states, rollout: Rollout, prompts: dict, temperature) -> jax.Array:
  """f32[B, T] of a rollout's tokens."""
  return lm.logprobs_of(model, *own, states, rollout.tokens, rollout.mask, temperature=temperature,
                        start=prompts['start'])


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


def _stacked(model, base, frozen, rollout, prompts, temperature, ensemble) -> Judged:
  """The same by one forward pass over both adapters: each weight of the base is read once."""
  del ensemble  # there is none
  mask, start = rollout.mask, prompts['start']
  both = trees.stack([_body(frozen['reference']), _body(frozen['reward'])])
  read = slice(start - 1, mask.shape[1])
  states = jax.vmap(lambda adapter: lm.hidden(
    model, base, adapter, rollout.tokens, mask, read=read, **prompts))(both)
  reference = _logprobs(
    model, (base, frozen['reference']), states[0][:, :-1], rollout, prompts, temperature)
  unread = frozen['reward']['head'].get('unread')
  last = masked.last_index(mask & masked.unlike(rollout.tokens, unread)) - read.start
  features = jnp.take_along_axis(states[1], last[:, None, None], 1)[:, 0].astype(jnp.float32)
  scores = lm.score_of(frozen['reward']['head'], features)
  return Judged(scores, None, reference, states[0][:, :-1])
