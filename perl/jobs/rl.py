"""Stage `rl`: the policy's adapter learns from the reward model, held to the anchor by a KL.

Four roles over one base (the anchor): the policy and the critic learn; the reference, which is the
policy's own adapter before its first update, and the reward model are frozen adapters. There is one
copy of the base in memory, unless rl.layout asks for the conventional four.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from perl import trees
from perl.data.examples import Example
from perl.jobs import artefacts, responses
from perl.jobs import setting as settings
from perl.peft import adapters
from perl.rl import roles
from perl.rl.experience import make_experience
from perl.rl.rollout import rollout
from perl.rl.rules import Rules
from perl.train import loop, memory
from perl.train import step as steps
from perl.types import Batch, Experience, Mean, Tree


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves adapter/ (the policy's); returns reward, KL and gold reward of the test prompts."""
  setting = settings.begin(config, workdir, 'rl')
  anchor = artefacts.load_anchor(setting)
  algorithm = importlib.import_module(f'perl.rl.{config.rl.algorithm}')
  learners = algorithm.trains(config.rl.baseline)
  learning = {role: _fresh(setting, anchor, role) for role in learners}
  reference = artefacts.reference(setting, anchor, learning['policy'])
  frozen = {'reference': reference, **responses.judges(setting, anchor)}
  tx = _optimizer(setting, learners)
  state, places = artefacts.first_state(setting, anchor.params, learning, tx)
  dev, test = (_make_evaluation(setting, anchor, frozen, split) for split in ('dev', 'test'))
  start, offset = test(state), dev(state)['reward']
  step = Step(setting, anchor, frozen, algorithm, tx, places, offset=offset)
  rows = setting.rows(step.prompts, 'prompt')
  state, result = loop.fit(
    step, state, setting.stream(rows, 'prompt'),
    meta=artefacts.run_meta(setting, anchor, head=False),
    evaluate=dev,
    **setting.loop_options(),
  )
  artefacts.save_adapter(setting, anchor, state.adapters['policy'])
  return setting.finish({
    **{f'dev_{name}': value for name, value in result.items() if name != 'step_seconds'},
    'step_seconds': result.get('step_seconds'),
    **test(state),
    **{f'{name}_start': value for name, value in start.items()},
    **step.memory(state),
    'parameters_trainable': adapters.count(state.adapters['policy']),
    'parameters_trainable_all_roles': adapters.count(state.adapters),
    'parameters_total': trees.count(anchor.params),
  })


def _fresh(setting: settings.Setting, anchor: artefacts.Base, role: str) -> Tree:
  """The role's adapter before the first update: the anchor's function; a critic's values are 0."""
  key = jax.random.fold_in(setting.key, ('policy', 'critic').index(role))
  start = setting.config.rl.adapter if role == 'policy' else ''
  adapter = artefacts.new_adapter(setting, anchor, key, head=role == 'critic', start=start)
  if role == 'critic':
    adapter['head'] = jax.tree.map(jnp.zeros_like, adapter['head'])
  return adapter


def _optimizer(
  setting: settings.Setting, learners: tuple[str, ...]
) -> optax.GradientTransformation:
  """A chain for each role: the gradient of one is not clipped for the other's sake."""
  rates = {'critic': setting.config.rl.value_learning_rate}
  chains = {
    role: setting.optimizer(**({'learning_rate': rates[role]} if role in rates else {}))
    for role in learners
  }
  labels = lambda tree: {
    role: jax.tree.map(lambda _, role=role: role, part) for role, part in tree.items()
  }
  return optax.partition(chains, labels)


class Step:
  """(state, prompts) -> (state, metrics): rollout, experience, update; three compiled programs."""

  def __init__(self, setting, anchor, frozen, algorithm, tx, places, *, offset: float):
    rl = setting.config.rl
    self.setting, self.model, self.frozen, self.offset = setting, anchor.model, frozen, offset
    self.base = roles.lay_out(anchor.params, rl.layout)
    common = dict(
      max_new_tokens=rl.max_new_tokens, temperature=rl.temperature, samples=rl.samples)
    self.experience = make_experience(
      anchor.model, beta=rl.beta, missing_eos_penalty=rl.missing_eos_penalty,
      forwards=rl.forwards, regularizer=rl.regularizer, baseline=rl.baseline,
      reward_weight=rl.reward_weight, ensemble=rl.ensemble, ensemble_penalty=rl.ensemble_penalty,
      **common
    )
    loss = algorithm.make_loss(anchor.model, baseline=rl.baseline, **common)
    self.update = steps.make_train_step(
      loss, tx, split=adapters.split, shardings=places, microbatches=rl.microbatches,
      together=rl.samples,
    )
    slots = rl.slots if rl.slots and rl.rollout != 'batch' else None
    self.sampling = responses.sampling(setting, samples=rl.samples, slots=slots)
    self.sample = rollout
    self.rules = responses.rules(setting)

  @functools.cached_property
  def prompts(self) -> list[Example]:
    """What is answered, in the order of a batch's index."""
    return self.setting.examples('train', 'prompt')

  def __call__(self, state: steps.TrainState, batch: Batch):
    experience, metrics = self.gather(state, self.setting.place(batch), self.rules)
    state, more = self.update(state, self.base, experience)
    return state, {name: m.value() for name, m in metrics.items()} | more

  def gather(
    self, state: steps.TrainState, batch: Batch, rules: Rules | None = None
  ) -> tuple[Experience, dict[str, Mean]]:
    """The experience of one batch of prompts, and its metrics; rules read texts, on the host."""
    # The update draws from fold_in(key, step); the rollout from a branch of its own.
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
    sampled = self.sample(
      self.model, roles.of(self.base, 'policy'), state.adapters['policy'], batch['tokens'],
      batch['mask'], key, **self.sampling,
    )
    weight = jnp.repeat(batch['weight'], self.sampling['samples'])
    if not rules:
      return self.experience(self.base, self.frozen, sampled, weight, self.offset)
    indices = np.repeat(jax.device_get(batch['index']), self.sampling['samples'])
    each = rules.each(
      [self.prompts[i] for i in indices], responses.texts_of(self.setting, sampled))
    extra = self.setting.place({'extra': rules.total(each)})['extra']
    experience, metrics = self.experience(
      self.base, self.frozen, sampled, weight, self.offset, extra)
    return experience, metrics | {
      f'rule_{name}': Mean.of(values, weight) for name, values in each.items()}

  def memory(self, state: steps.TrainState) -> dict:
    """The update's compiled bytes, at the longest prompts."""
    setting = self.setting
    rows = setting.rows(setting.examples('dev', 'prompt'), 'prompt')
    batch = memory.longest(setting.evaluation_batches(rows, 'prompt'))
    prompts = setting.config.rl.batch_size // setting.config.rl.samples
    batch = setting.place(memory.resized(batch, prompts))
    experience, _ = jax.eval_shape(self.gather, state, batch)
    return memory.of_step(self.update, state, self.base, experience)


def _make_evaluation(
  setting: settings.Setting, anchor: artefacts.Base, frozen: dict[str, Tree], split: str
):
  """State -> reward, KL, length, gold reward of one sample for each prompt of the split."""
  examples = responses.examples(setting, split)
  key = jax.random.fold_in(setting.key, 2)
  known: dict[int, dict[str, float]] = {}  # step 0 is asked for twice: for the offset, by the loop

  def evaluate(state: steps.TrainState) -> dict[str, float]:
    step = int(state.step)
    if step not in known:
      known[step] = of_policy(state)
    return known[step]

  def of_policy(state: steps.TrainState) -> dict[str, float]:
    found = responses.respond(
      setting, anchor, state.adapters['policy'], examples, key, frozen=frozen
    )
    values = {
      'reward': float(found.scores.mean()),
      'kl': float(found.kl.mean()),
      'response_tokens': float(np.mean([len(t) for t in found.tokens])),
      'finished': float(found.finished.mean()),
    }
    gold = responses.gold_rewards(setting, examples, found.texts)
    return values if gold is None else values | {'gold_reward': float(gold.mean())}

  return evaluate
