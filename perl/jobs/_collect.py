"""A step of RL: rollout, experience, update; three compiled programs, over one base."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perl.data.batches import paired
from perl.data.examples import Example
from perl.jobs import _artefacts as artefacts
from perl.jobs import _responses as responses
from perl.jobs._setting import Setting
from perl.objectives import advantages
from perl.peft import adapters
from perl.rl import algorithms, roles, update
from perl.rl.experience import make_experience
from perl.rl.rollout import rollout
from perl.rl.rules import Rules
from perl.train import loop, memory
from perl.train import step as steps
from perl.types import Batch, Experience, Mean, Tree

BUILDS = ('max_new_tokens', 'temperature', 'beta', 'missing_eos_penalty', 'overlong', 'forwards',
          'regularizer', 'regularize', 'reward_weight', 'reward_clip', 'gamma', 'ensemble',
          'ensemble_penalty')
"""Fields of config.rl that make_experience takes by their names."""

ASIDE = ('tokens', 'mask', 'loss_mask')
"""What is read of a batch of documents."""


class Step:
  """(state, batch of prompts) -> (state, metrics)."""

  def __init__(
    self, setting: Setting, anchor: artefacts.Base, frozen: dict[str, Tree], tx, places: Tree, *,
    offset: float,
  ):
    rl = self.rl = setting.config.rl
    given, name = rl.to_dict(), rl.algorithm
    self.setting, self.model, self.offset = setting, anchor.model, offset
    needed = {'reward', 'reference'} if algorithms.reads_reference(name, given) else {'reward'}
    self.frozen = {role: tree for role, tree in frozen.items() if role in needed}
    self.base = roles.lay_out(anchor.params, rl.layout)
    build = functools.partial(make_experience, anchor.model, **{key: given[key] for key in BUILDS})
    self.experience = build(samples=rl.samples)
    greedy = getattr(algorithms.find(name), 'GREEDY', False)
    self.greedy_experience = build(samples=1) if greedy else None
    self.update = steps.make_train_step(
      update.make_loss(anchor.model, **given), tx, split=adapters.split, shardings=places,
      microbatches=rl.microbatches, together=rl.samples, epochs=rl.epochs,
      minibatches=rl.minibatches, prepare=update.make_prepare(anchor.model, **given),
      stop=(lambda values: values['kl_old'] > rl.stop_kl) if rl.stop_kl else None,
    )
    slots = rl.slots if rl.slots and rl.rollout != 'batch' else None
    self.sampling = responses.sampling(setting, samples=rl.samples, slots=slots)
    self.sample = rollout
    self.rules = responses.rules(setting)

  @functools.cached_property
  def prompts(self) -> list[Example]:
    """What is answered, in the order of a batch's index."""
    return self.setting.examples('train', 'prompt')

  def stream(self) -> loop.Stream:
    """Batches of prompts, as many as an update may need; with documents beside, where asked."""
    setting, rl = self.setting, self.rl
    rows = setting.rows(self.prompts, 'prompt')
    prompts = setting.stream(rows, 'prompt', rl.rounds * rl.batch_size // rl.samples)
    if not rl.ptx:
      return prompts
    documents = setting.rows(setting.examples('train', 'document'), 'document')
    return paired.Beside(prompts, setting.stream(documents, 'document'))

  def __call__(self, state: steps.TrainState, batch: Batch):
    experience, metrics = self.collect(state, self.setting.place(batch))
    state, more = self.update(state, self.base, experience)
    return state, {name: m.value() for name, m in metrics.items()} | more

  def collect(self, state: steps.TrainState, batch: Batch) -> tuple[Experience, dict[str, Mean]]:
    """`gather`, again on further prompts while too few have responses that differ in score."""
    rounds, (batch, aside) = self.rl.rounds, paired.split(batch)
    found, metrics, known = [], {}, 0
    for number in range(rounds):
      part = {name: x[number::rounds] for name, x in batch.items()}
      e, new = self.gather(state, part, self.rules, number)
      found.append(e)
      metrics = jax.tree.map(jnp.add, metrics, new) if metrics else new
      if rounds > 1:
        known += int(_informative(e, samples=self.rl.samples).sum())
        if known >= len(e.weight):
          break
    e = found[0] if rounds == 1 else _chosen(found, samples=self.rl.samples)
    if rounds > 1:
      metrics['rounds'] = Mean.of(jnp.float32(len(found)))
    return e.replace(aside={name: aside[name] for name in ASIDE} if aside else None), metrics

  def gather(
    self, state: steps.TrainState, batch: Batch, rules: Rules | None = None, number: int = 0
  ) -> tuple[Experience, dict[str, Mean]]:
    """The experience of one batch of prompts, and its metrics; rules read texts, on the host."""
    # The update draws from fold_in(key, step); rollouts from branches of their own.
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1 + number)
    greedy = None
    if self.greedy_experience:
      held = {role: tree for role, tree in self.frozen.items() if role == 'reward'}
      likeliest, _ = self._judged(
        self.greedy_experience, held, state, batch, key, rules, samples=1, temperature=0.0)
      greedy = jnp.repeat(likeliest.rewards.sum(-1), self.rl.samples)
    e, metrics = self._judged(self.experience, self.frozen, state, batch, key, rules)
    if greedy is not None:
      metrics['greedy'] = Mean.of(greedy, e.weight)
    return e.replace(greedy_returns=greedy), metrics

  def _judged(self, build, frozen, state, batch, key, rules, **changes):
    """(experience, metrics) that `build` makes of what is sampled with these changes."""
    sampling = self.sampling | changes
    sampled = self.sample(
      self.model, roles.of(self.base, 'policy'), state.adapters['policy'], batch['tokens'],
      batch['mask'], key, **sampling,
    )
    weight = jnp.repeat(batch['weight'], sampling['samples'])
    if not rules:
      return build(self.base, frozen, sampled, weight, self.offset, 0.0, state.running)
    indices = np.repeat(jax.device_get(batch['index']), sampling['samples'])
    texts = responses.texts_of(self.setting, sampled) if rules.read_texts else []
    only = lambda x: x[:, -self.rl.max_new_tokens:]
    each = rules.each([self.prompts[i] for i in indices], texts, only(sampled.tokens),
                      only(sampled.response_mask))
    extra = self.setting.place({'extra': rules.total(each)})['extra']
    experience, metrics = build(
      self.base, frozen, sampled, weight, self.offset, extra, state.running)
    return experience, metrics | {
      f'rule_{name}': Mean.of(values, weight) for name, values in each.items()}

  def memory(self, state: steps.TrainState) -> dict:
    """The update's compiled bytes, at the longest prompts."""
    longest = functools.partial(_longest, self.setting)
    batch = longest('prompt', self.rl.batch_size // self.rl.samples)
    experience, _ = jax.eval_shape(self.gather, state, batch)
    if self.rl.ptx:
      documents = longest('document', self.rl.batch_size)
      experience = experience.replace(aside={name: documents[name] for name in ASIDE})
    return memory.of_step(self.update, state, self.base, experience)


def _longest(setting: Setting, kind: str, rows: int) -> Batch:
  """The longest batch of the dev split's examples, as if of so many rows."""
  found = setting.rows(setting.examples('dev', kind), kind)
  batch = memory.longest(setting.evaluation_batches(found, kind))
  return setting.place(memory.resized(batch, rows))


def _informative(e: Experience, *, samples: int) -> jax.Array:
  return advantages.informative(e.rewards.sum(-1), e.weight, samples=samples)


@functools.partial(jax.jit, static_argnames='samples')
def _chosen(found: list[Experience], *, samples: int) -> Experience:
  """As many rows as one rollout has: groups that differ in score first; others weigh nothing."""
  rows = len(found[0].weight)
  e = jax.tree.map(lambda *x: jnp.concatenate(x), *found)
  useful = _informative(e, samples=samples)
  order = jnp.argsort(~useful, stable=True)[:rows]
  e, useful = jax.tree.map(lambda x: x[order], (e, useful))
  return e.replace(weight=jnp.where(useful, e.weight, 0.0))
