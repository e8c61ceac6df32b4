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
from perl.models import decode
from perl.models.transformer import Transformer
from perl.objectives import advantages, regularizers
from perl.options import check, names, picked, taken
from perl.peft import adapters
from perl.rl import algorithms, roles, update
from perl.rl.experience import make_experience
from perl.rl.rewards import Rewards, make_judge
from perl.rl.rollout import kept_apart, merges, read_anew, rollout
from perl.train import step as steps
from perl.types import Batch, Experience, Mean, Tree

PER_TOKEN = ('tokens', 'mask', 'response_mask', 'behaviour_logprobs', 'reference_logprobs',
             'rewards', 'returns', 'sampler_logprobs')
"""What a rollout's experience holds of every column."""
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
    further: () -> the next batch of prompts, for rounds after the first.
    own_logprobs: the trainer reads behaviour log-probs anew, once a rollout; an update that is the
      only one on it knows them anyhow.
    offset: taken from every score: the anchor's mean.
    likeliest: what the greedy response to each prompt is worth, for algorithms that read it.
    place: a batch of arrays -> the batch on the mesh.
  """

  def __init__(
    self, base: Tree, examples: Sequence[Example], *, sample: Callable, rewards: Rewards,
    experience: Callable, update: Callable, samples: int = 1, rounds: int = 1, offset: float = 0.0,
    likeliest: Rewards | None = None, further: Callable[[], Batch] | None = None,
    own_logprobs: bool = False, place: Callable[[Batch], Batch] = lambda batch: batch,
  ):
    self.base, self.examples, self.place = base, examples, place
    self.further, self.own_logprobs = further, own_logprobs
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
    self, state: steps.TrainState, prompts: Batch, number: int = 0, scale: jax.Array | None = None
  ) -> tuple[Experience, dict[str, Mean]]:
    """(the experience of one batch of prompts, its metrics).

    Args:
      state: whose policy samples.
      prompts: a batch of them.
      number: tells rollouts of a step from one another.
      scale: of scores, where another rollout has settled it.
    """
    # The update draws from fold_in(key, step); rollouts from branches of their own.
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1 + number)
    experience, metrics = self._gathered(
      self.rewards, state, prompts, key, samples=self.samples, scale=scale,
      policy=state.adapters['policy'] if self.own_logprobs else None)
    if self.likeliest is not None:
      greedy, _ = self._gathered(
        self.likeliest, state, prompts, key, samples=1, scale=experience.scale[0], temperature=0.0)
      best, judged = (jnp.repeat(x, self.samples) for x in (greedy.rewards.sum(-1), greedy.weight))
      experience = experience.replace(greedy_returns=best, weight=experience.weight * (judged > 0))
      metrics['greedy'] = Mean.of(best, experience.weight)
    return experience, metrics

  def _gathered(
    self, rewards: Rewards, state, prompts: Batch, key, *, samples: int, scale, policy=None, **how
  ):
    """Sampled, judged, laid out; what a rule cannot judge weighs nothing."""
    weight = jnp.repeat(prompts['weight'], samples)
    sampler = roles.of(self.base, 'policy'), state.adapters['policy']
    sampled = self.sample(
      *sampler, prompts['tokens'], prompts['mask'], key, samples=samples, **how,
      **kept_apart(self.sample, *sampler))
    judged, rules = rewards(self.base, sampled, self._asked(rewards, prompts, samples), policy)
    metrics = {f'rule_{name}': Mean.of(values, weight * ~np.isnan(values))
               for name, values in rules.items()}
    if judged.left_out is not None:
      metrics['left_out'] = Mean.of(judged.left_out, weight)
      weight = jnp.where(judged.left_out, 0.0, weight)
    experience, more = self.experience(sampled, judged, weight, self.offset, state.running, scale)
    return experience, more | metrics

  def _asked(self, rewards: Rewards, prompts: Batch, samples: int) -> list[Example]:
    """The example of each response, where rules want them."""
    if not rewards.rules:
      return []
    return [self.examples[i] for i in np.repeat(jax.device_get(prompts['index']), samples)]

  def collect(
    self, state: steps.TrainState, prompts: Batch
  ) -> tuple[Experience, dict[str, Mean]]:
    """`gather`, again on further prompts while too few have responses that differ in score."""
    experience, metrics = self.gather(state, prompts)
    if self.rounds == 1:
      return experience, metrics
    gathered, useful = [experience], lambda e: int(_informative(e, samples=self.samples).sum())
    informative = useful(experience)
    while informative < len(experience.weight) and len(gathered) < self.rounds:
      prompts, _ = paired.split(self.place(self.further()))
      new, more = self.gather(state, prompts, len(gathered), experience.scale[0])
      gathered.append(new)
      metrics = jax.tree.map(jnp.add, metrics, more)
      informative += useful(new)
    metrics['rounds'] = Mean.of(jnp.float32(len(gathered)))
    return _chosen(_of_one_length(gathered), samples=self.samples), metrics


def make_step(
  model: Transformer, base: Tree, frozen: Mapping[str, Tree], examples: Sequence[Example],
  tx: optax.GradientTransformation, places: Tree, *, algorithm: str, sampling: Mapping[str, Any],
  rewarding: Mapping[str, Any], offset: float = 0.0, microbatches: int = 1, stop_kl: float = 0.0,
  behaviour: str = 'auto', correction: str = 'auto', further: Callable[[], Batch] | None = None,
  place: Callable[[Batch], Batch] = lambda batch: batch, **options: Any,
) -> Step:
  """The step of an algorithm.

  Args:
    model: the module of the base, which all roles share.
    base, examples, offset, further, place: see `Step`.
    frozen: adapters that do not learn, by role: 'reference', of the policy's form, and 'reward'
      where a model rewards.
    tx: the optimizer of what learns.
    places: placements of the state, which the step keeps.
    algorithm: a file of perl/rl/algorithms.
    sampling: arguments of rollout.rollout, beside samples.
    rewarding: arguments of `Rewards`: rules, their weights, decode.
    microbatches: parts in which an update passes through memory.
    stop_kl: nats a token, at which no further update is made on a rollout; 0 makes all.
    behaviour: whose log-probs of the samples the ratio is to: the 'sampler's or the 'trainer's,
      of the same tokens; 'auto' is the trainer's where the two compute otherwise: in narrow
      types (not rollout.wide), or with merged weights.
    correction: of objectives.policy.CORRECTIONS; 'auto' is TRL's where the trainer's are read.
    **options: resolved ones of the algorithm, of make_judge, make_experience and make_loss.

  Raises:
    ValueError: an option that nobody declares.
  """
  check(options, known_options(), 'an algorithm')
  policy = roles.of(base, 'policy')
  sampling = {'copy': decode.copies(policy), **sampling}  # decided once, for all that depends on it
  anew = read_anew(model, behaviour, **picked(sampling, ('cache',)))
  trainers = anew or behaviour == 'auto' and merges(
    model, policy, frozen['reference'], sampling.get('merged'), sampling['copy'])
  auto = 'sequence_mask' if trainers else 'none'
  options = options | {'correction': auto if correction == 'auto' else correction}
  once, shaped = algorithms.updates(options) == 1, algorithms.in_reward(options)
  about, learning = algorithms.find(algorithm), picked(options, update.known_options())
  learning |= {'own_behaviour': trainers and once}
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
    further=further, own_logprobs=trainers and not once or shaped and anew,
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
  """By what reward model and rules say: a KL, or a length, differs in any group."""
  return advantages.informative(e.verdicts, e.weight, samples=samples)


def _of_one_length(gathered: list[Experience]) -> list[Experience]:
  """With the columns of the longest prompts, on the left: responses stay the last columns."""
  longest = max(e.tokens.shape[1] for e in gathered)
  wider = lambda x: None if x is None else jnp.pad(x, ((0, 0), (longest - x.shape[1], 0)))
  return [e.replace(**{name: wider(getattr(e, name)) for name in PER_TOKEN}) for e in gathered]


@functools.partial(jax.jit, static_argnames='samples')
def _chosen(gathered: list[Experience], *, samples: int) -> Experience:
  """As many rows as one rollout has: groups that differ in score first; others weigh nothing."""
  rows = len(gathered[0].weight)
  e = jax.tree.map(lambda *x: jnp.concatenate(x), *gathered)
  useful = _informative(e, samples=samples)
  order = jnp.argsort(~useful, stable=True)[:rows]
  e, useful = jax.tree.map(lambda x: x[order], (e, useful))
  return e.replace(weight=jnp.where(useful, e.weight, 0.0))
