"""A step of RL, the whole of it: sample, judge, lay out as experience, learn.

  rollout     y ~ pi(. | x), by the policy's adapter over the base        (perl/rl/rollout)
  judged      reward model and rules score y, the reference reads it      (perl/rl/rewards.py)
  experience  scores and KL become rewards and returns of tokens          (perl/rl/experience.py)
  update      the algorithm's advantages, its loss, its optimizer         (perl/rl/update.py)

Four compiled programs over one base, which is an argument of each. Rules read texts, on the host.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from perl.data.batches import paired
from perl.data.examples import Example
from perl.models.transformer import Transformer
from perl.objectives import advantages, regularizers
from perl.options import check, names, picked, taken
from perl.peft import adapters
from perl.rl import algorithms, roles, update
from perl.rl.experience import make_experience
from perl.rl.rewards import Rewards, make_judge
from perl.rl.rollout import kept_apart, rollout
from perl.train import step as steps
from perl.types import Batch, Experience, Mean, Tree

ASIDE = ('tokens', 'mask', 'loss_mask')
"""What is read of a batch of documents."""


class Step:
  """(state, batch of prompts) -> (state, metrics).

  Args:
    base: that all adapters lie over, or `roles.Bases`.
    examples: of the prompts, in the order of a batch's index.
    sample: (base, adapter, tokens, mask, key) -> Rollout, jitted.
    rewards: what the responses are worth.
    experience: of `make_experience`.
    update: (state, base, experience) -> (state, metrics), the train step.
    samples: responses to each prompt.
    rounds: rollouts that an update may take until enough prompts have responses that differ.
    offset: taken from every score: the anchor's mean.
    likeliest: what the greedy response to each prompt is worth, for algorithms that read it.
    place: a batch of arrays -> the batch on the mesh.
  """

  def __init__(
    self, base: Tree, examples: Sequence[Example], *, sample: Callable, rewards: Rewards,
    experience: Callable, update: Callable, samples: int = 1, rounds: int = 1, offset: float = 0.0,
    likeliest: Rewards | None = None, place: Callable[[Batch], Batch] = lambda batch: batch,
  ):
    self.base, self.examples, self.place = base, examples, place
    self.sample, self.rewards, self.experience, self.update = sample, rewards, experience, update
    self.samples, self.rounds, self.offset, self.likeliest = samples, rounds, offset, likeliest

  def __call__(self, state: steps.TrainState, batch: Batch):
    """One update on the responses to a batch of prompts, and on the documents beside them."""
    prompts, documents = paired.split(self.place(batch))
    experience, metrics = self.collect(state, prompts)
    if documents:
      experience = experience.replace(aside={name: documents[name] for name in ASIDE})
    state, more = self.update(state, self.base, experience)
    return state, {name: mean.value() for name, mean in metrics.items()} | more

  def gather(
    self, state: steps.TrainState, prompts: Batch, number: int = 0
  ) -> tuple[Experience, dict[str, Mean]]:
    """(the experience of one batch of prompts, its metrics); `number` tells rollouts of a step."""
    # The update draws from fold_in(key, step); rollouts from branches of their own.
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1 + number)
    best = self._likeliest_returns(state, prompts, key)
    experience, metrics = self._gathered(self.rewards, state, prompts, key, samples=self.samples)
    if best is not None:
      metrics['greedy'] = Mean.of(best, experience.weight)
    return experience.replace(greedy_returns=best), metrics

  def _gathered(self, rewards: Rewards, state, prompts: Batch, key, *, samples: int, **how):
    """Sampled, judged, laid out."""
    weight = jnp.repeat(prompts['weight'], samples)
    policy = roles.of(self.base, 'policy'), state.adapters['policy']
    sampled = self.sample(
      *policy, prompts['tokens'], prompts['mask'], key, samples=samples, **how,
      **kept_apart(self.sample, *policy))
    judged, rules = rewards(self.base, sampled, self._asked(rewards, prompts, samples))
    experience, metrics = self.experience(sampled, judged, weight, self.offset, state.running)
    return experience, metrics | {
      f'rule_{name}': Mean.of(values, weight) for name, values in rules.items()}

  def _asked(self, rewards: Rewards, prompts: Batch, samples: int) -> list[Example]:
    """The example of each response, where rules want them."""
    if not rewards.rules:
      return []
    return [self.examples[i] for i in np.repeat(jax.device_get(prompts['index']), samples)]

  def _likeliest_returns(self, state, prompts: Batch, key) -> jax.Array | None:
    if self.likeliest is None:
      return None
    experience, _ = self._gathered(
      self.likeliest, state, prompts, key, samples=1, temperature=0.0)
    return jnp.repeat(experience.rewards.sum(-1), self.samples)

  def collect(
    self, state: steps.TrainState, prompts: Batch
  ) -> tuple[Experience, dict[str, Mean]]:
    """`gather`, again on further prompts while too few have responses that differ in score."""
    if self.rounds == 1:
      return self.gather(state, prompts)
    gathered, metrics, informative = [], {}, 0
    for number in range(self.rounds):
      part = {name: x[number::self.rounds] for name, x in prompts.items()}
      experience, new = self.gather(state, part, number)
      gathered.append(experience)
      metrics = jax.tree.map(jnp.add, metrics, new) if metrics else new
      informative += int(_informative(experience, samples=self.samples).sum())
      if informative >= len(experience.weight):
        break
    metrics['rounds'] = Mean.of(jnp.float32(len(gathered)))
    return _chosen(gathered, samples=self.samples), metrics


def make_step(
  model: Transformer, base: Tree, frozen: Mapping[str, Tree], examples: Sequence[Example],
  tx: optax.GradientTransformation, places: Tree, *, algorithm: str, sampling: Mapping[str, Any],
  rewarding: Mapping[str, Any], offset: float = 0.0, microbatches: int = 1, stop_kl: float = 0.0,
  place: Callable[[Batch], Batch] = lambda batch: batch, **options: Any,
) -> Step:
  """The step of an algorithm.

  Args:
    model: the module of the base, which all roles share.
    base, examples, offset, place: see `Step`.
    frozen: adapters that do not learn, by role: 'reference', and 'reward' where a model rewards.
    tx: the optimizer of what learns.
    places: placements of the state, which the step keeps.
    algorithm: a file of perl/rl/algorithms.
    sampling: arguments of rollout.rollout, beside samples.
    rewarding: arguments of `Rewards`: rules, their weights, decode.
    microbatches: parts in which an update passes through memory.
    stop_kl: nats a token, at which no further update is made on a rollout; 0 makes all.
    **options: resolved ones of the algorithm, of make_judge, make_experience and make_loss.

  Raises:
    ValueError: an option that nobody declares.
  """
  check(options, known_options(), 'an algorithm')
  about, learning = algorithms.find(algorithm), picked(options, update.known_options())
  needed = {'reward', 'reference'} if algorithms.reads_reference(algorithm, options) else {'reward'}
  frozen = {role: tree for role, tree in frozen.items() if role in needed}
  states = options['regularizer'] in regularizers.EXACT
  judged_by = lambda frozen, samples: Rewards(
    make_judge(model, states=states, **taken(make_judge, options | {
      'samples': samples})),
    frozen, place=place, max_new_tokens=options['max_new_tokens'], **rewarding)
  samples, greedy = options['samples'], getattr(about, 'GREEDY', False)
  return Step(
    base, examples, place=place, offset=offset, samples=samples, rounds=options['rounds'],
    sample=functools.partial(rollout, model, samples=samples, **sampling),
    rewards=judged_by(frozen, samples),
    likeliest=judged_by({k: v for k, v in frozen.items() if k == 'reward'}, 1) if greedy else None,
    experience=make_experience(**taken(make_experience, options)),
    update=steps.make_train_step(
      update.make_loss(model, algorithm, **learning), tx, split=adapters.split, shardings=places,
      microbatches=microbatches, together=samples, epochs=options['epochs'],
      minibatches=options['minibatches'],
      prepare=update.make_prepare(model, algorithm, microbatches=microbatches, **learning),
      stop=(lambda values: values['kl_old'] > stop_kl) if stop_kl else None,
    ),
  )


def known_options() -> frozenset[str]:
  """The options that `make_step` takes, its own among them."""
  own = {*names(make_step), *names(make_judge), *names(make_experience)} - {'states'}
  return update.known_options() | own


def _informative(e: Experience, *, samples: int) -> jax.Array:
  return advantages.informative(e.rewards.sum(-1), e.weight, samples=samples)


@functools.partial(jax.jit, static_argnames='samples')
def _chosen(gathered: list[Experience], *, samples: int) -> Experience:
  """As many rows as one rollout has: groups that differ in score first; others weigh nothing."""
  rows = len(gathered[0].weight)
  e = jax.tree.map(lambda *x: jnp.concatenate(x), *gathered)
  useful = _informative(e, samples=samples)
  order = jnp.argsort(~useful, stable=True)[:rows]
  e, useful = jax.tree.map(lambda x: x[order], (e, useful))
  return e.replace(weight=jnp.where(useful, e.weight, 0.0))
