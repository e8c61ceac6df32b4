"""Stage `rl`: the policy's adapter learns from the reward model, held to the anchor by a KL.

Four roles over one base (the anchor): the policy and the critic learn; the reference, which is the
policy's own adapter before its first update, and the reward model are frozen adapters. There is one
copy of the base in memory, unless rl.layout asks for the conventional four.
"""

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from perl import trees
from perl.data.batches import paired
from perl.data.examples import SPLITS, Example
from perl.jobs import _responses as responses
from perl.jobs import _run as runs
from perl.jobs import reward
from perl.jobs._artefacts import Artefacts, Base
from perl.jobs._data import Data
from perl.jobs._held_out import HeldOut, Units, units_of
from perl.jobs._plan import Plan, Program, Stage, placed, spread
from perl.jobs._run import Run
from perl.options import picked, taken
from perl.peft import adapters
from perl.rl import algorithms, roles, statistics
from perl.rl.step import ASIDE, Step, known_options, make_step
from perl.train import loop, memory, sharding
from perl.train import step as steps
from perl.types import Batch, Experience, Tree

LARGEST_GAP = 0.05
"""Nats a token between the log-probs of sampler and trainer, above which a run warns; a sound
bfloat16 model has about 0.015."""


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves adapter/ (the policy's); returns reward, KL and gold reward of the test prompts."""
  run = runs.begin(config, workdir, 'rl')
  artefacts, rl = Artefacts(run), run.section
  data, anchor = artefacts.data, artefacts.anchor()
  learning = {role: fresh(artefacts, anchor, role) for role in learners(run)}
  reference = artefacts.reference(anchor, learning['policy'])
  frozen = {'reference': reference, **responses.judges(artefacts, anchor)}
  tx = optimizer(run)
  state, places = run.first_state(
    anchor.params, learning, tx, running=statistics.first(**taken(statistics.first, rl)))
  prompts, base = data.examples('train', 'prompt'), roles.lay_out(anchor.params, rl.layout)
  responses.rewarding(run, data)['rules'].check(prompts)
  dev, test = (HeldOut(run, data, anchor, frozen, split) for split in ('dev', 'test'))
  start = test.measure(state)
  units, running = units_of(rl, dev.answers(state), state.running)
  state = sharding.place(in_units(state.replace(running=running), rl, units), places)
  batches = stream(data, prompts)
  step = step_of(run, data, anchor, base, frozen, prompts, tx, places, offset=units.offset,
                 further=lambda: next(getattr(batches, 'first', batches)))
  state, result = loop.fit(
    step, state, batches, evaluate=dev.measure, show=dev.show,
    # Else what updates have moved is in the gap too.
    watch=_Watch(run.stage) if step.own_logprobs or run.updates == 1 else None,
    best_metric=rl.best_metric, best_mode=rl.best_mode, keep_best=rl.keep == 'best',
    **artefacts.resumed(anchor), **run.loop_options())
  artefacts.save_adapter(anchor, state.adapters['policy'])
  return run.finish({
    **runs.training_result(result),
    **test.measure(state),
    **{f'{name}_start': value for name, value in start.items()},
    **_memory(run, data, step, state),
    'parameters_trainable': adapters.count(state.adapters['policy']),
    'parameters_trainable_all_roles': adapters.count(state.adapters),
    'parameters_total': trees.count(anchor.params),
  })


def learners(run: Run) -> tuple[str, ...]:
  """The roles that the config's algorithm trains."""
  return algorithms.trains(run.section.algorithm, run.section)


def fresh(artefacts: Artefacts, anchor: Base, role: str) -> Tree:
  """The role's adapter before the first update: the anchor's function; a critic's values are 0,
  or the reward model's scores (`in_units` makes returns of them).
  """
  rl, critic = artefacts.run.config.rl, role == 'critic'
  key = jax.random.fold_in(artefacts.run.key, ('policy', 'critic').index(role))
  adapter = artefacts.new_adapter(anchor, key, head=critic, start='' if critic else rl.adapter)
  if critic and rl.critic_from == 'reward':
    return _of_reward(artefacts, anchor, adapter)
  if critic:
    adapter['head'] = jax.tree.map(jnp.zeros_like, adapter['head'])
  return adapter


def _of_reward(artefacts: Artefacts, anchor: Base, critic: Tree) -> Tree:
  """The reward model as a critic: what its head reads of the last hidden state, and no more."""
  model, _ = artefacts.adapter(artefacts.run.input('reward'), anchor)
  copy = model | {'head': {name: model['head'][name] for name in critic['head']}}
  if jax.tree.map(jnp.shape, copy) != jax.tree.map(jnp.shape, critic):
    raise ValueError(
      "expected a reward model of the critic's method, ranks and modules for "
      'rl.critic_from=reward, found another; train it with this config.peft, or set '
      'rl.critic_from=zero')
  return copy


def in_units(state: steps.TrainState, rl: ConfigDict, units: Units) -> steps.TrainState:
  """The state with a critic that speaks in the units of returns, where it begins as the reward
  model: centred, scaled and weighed as rewards are.
  """
  if 'critic' not in state.adapters or rl.critic_from != 'reward':
    return state
  critic = state.adapters['critic']
  critic = critic | {'head': units.of_critic(critic['head'])}
  return state.replace(adapters=state.adapters | {'critic': critic})


def optimizer(run: Run) -> optax.GradientTransformation:
  """A chain for each role: the gradient of one is not clipped for the other's sake."""
  rates = {'critic': run.section.value_learning_rate}
  chains = {
    role: run.optimizer(**({'learning_rate': rates[role]} if role in rates else {}))
    for role in learners(run)}
  labels = lambda tree: {
    role: jax.tree.map(lambda _, role=role: role, part) for role, part in tree.items()}
  return optax.partition(chains, labels)


def step_of(
  run: Run, data: Data, anchor: Base, base: Tree, frozen: dict[str, Tree],
  prompts: list[Example], tx: optax.GradientTransformation, places: Tree, *, offset: float,
  further: Callable[[], Batch] | None = None,
) -> Step:
  """The step that config.rl asks for: perl/rl/step.py."""
  rl = run.section
  slots = rl.slots if rl.slots and rl.rollout != 'batch' else None
  return make_step(
    anchor.model, base, frozen, prompts, tx, places, offset=offset, place=run.place,
    further=further,
    sampling=responses.sampling(run, data, slots=slots),
    rewarding=responses.rewarding(run, data), **picked(rl, known_options()))


def stream(data: Data, prompts: list[Example]) -> loop.Stream:
  """Batches of the prompts of a rollout; with documents beside, where asked."""
  rl = data.run.section
  batches = data.stream(data.rows(prompts, 'prompt'), 'prompt', rl.batch_size // rl.samples)
  if not rl.ptx:
    return batches
  documents = data.rows(data.examples('train', 'document'), 'document')
  return paired.Paired(batches, data.stream(documents, 'document'))


class _Watch:
  """Warns, once, where the sampler is another policy than the trainer."""

  def __init__(self, stage: str):
    self.stage, self.warned = stage, False

  def __call__(self, step: int, values: dict[str, float]) -> None:
    gap = values.get('sampler_gap', 0.0)
    if gap <= LARGEST_GAP or self.warned:
      return
    self.warned = True
    logging.warning(
      '%s: at step %d the log-probs of sampler and trainer are %.3f nats a token apart (above %g); '
      'set rl.cache=float32, rl.decode=adapter or model.dtype=float32, or leave rl.behaviour=auto',
      self.stage, step, gap, LARGEST_GAP)


def _memory(run: Run, data: Data, step: Step, state: steps.TrainState) -> dict[str, int]:
  """The update's compiled bytes, at the longest prompts."""
  rl = run.section
  batch = _longest(data, 'prompt', rl.batch_size // rl.samples)
  documents = _longest(data, 'document', rl.batch_size) if rl.ptx else {}
  experience = _experience(step, gathering(step, state, batch, run.mesh), documents, run.mesh)
  return memory.of_step(step.update, state, step.base, experience)


def _longest(data: Data, kind: str, rows: int) -> Batch:
  """The longest batch of the dev split's examples, as if of so many rows."""
  batch = memory.longest(data.evaluation_batches(data.rows(data.examples('dev', kind), kind), kind))
  return data.run.place(memory.resized(batch, rows))


def needs(data: Data) -> list[tuple[str, str]]:
  """(kind, split) of the examples that the stage reads."""
  documents = [('document', 'train'), ('document', 'dev')] if data.run.section.ptx else []
  return [*(('prompt', split) for split in SPLITS), *documents]


def learns(plan: Plan) -> tuple[dict[str, Tree], optax.GradientTransformation]:
  """(what learns by role, by shapes; its optimizer)."""
  learning = {
    role: plan.adapter(lambda base, role=role: _fresh_shapes(plan.artefacts, base, role))
    for role in learners(plan.run)}
  return learning, optimizer(plan.run)


def _fresh_shapes(artefacts: Artefacts, base: Base, role: str) -> Tree:
  """A role's adapter by shapes, which are the same whatever it begins as."""
  critic, start = role == 'critic', artefacts.run.config.rl.adapter
  return artefacts.new_adapter(
    base, artefacts.run.key, head=critic, start='' if critic else start)


def programs(plan: Plan) -> Stage:
  """What the stage holds and runs, by shapes: a rollout, its judges, the experience, an update."""
  run, anchor, rl = plan.run, plan.anchor, plan.run.section
  learning, tx = learns(plan)
  frozen = {'reference': plan.adapter(lambda base: plan.artefacts.reference(
    base, _fresh_shapes(plan.artefacts, base, 'policy')))}
  if rl.reward_weight:
    frozen['reward'] = plan.adapter(lambda base: reward.new_adapter(plan.artefacts, base))
  state, places = plan.first_state(
    learning, tx, statistics.first(**taken(statistics.first, rl)))
  bases = jax.eval_shape(lambda base: roles.lay_out(base, rl.layout), anchor.params)
  bases = placed(bases, sharding.base_shardings(bases, run.mesh))
  step = step_of(run, plan.data, anchor, bases, frozen, [], tx, places, offset=0.0)
  batch = plan.batch('prompt')
  documents = plan.batch('document', rl.batch_size) if rl.ptx else {}
  before = gathering(step, state, batch, run.mesh)
  experience = _experience(step, before, documents, run.mesh)
  update = Program(step.update, (state, bases, experience), experience)
  return Stage(anchor.model, bases, state, frozen, batch, before | {'update': update})


def gathering(
  step: Step, state: steps.TrainState, prompts: Batch, mesh: Mesh
) -> dict[str, Program]:
  """What a step runs before its update, by name; arrays of its arguments may be shapes."""
  sample, key = step.sample, spread(jax.eval_shape(lambda: jax.random.key(0)), mesh)
  inputs = prompts['tokens'], prompts['mask'], key
  rollout = Program(
    sample.func,
    (*sample.args, roles.of(step.base, 'policy'), state.adapters['policy'], *inputs), inputs,
    sample.keywords)
  sampled = rollout.result(mesh)
  read = step.rewards.roles(state.adapters['policy'] if step.own_logprobs else None)
  judge = Program(step.rewards.judge, (step.base, read, sampled), sampled)
  judged, weight = judge.result(mesh), _column(sampled.finished, mesh)
  experience = Program(
    step.experience, (sampled, judged, weight, 0.0, state.running), (sampled, judged, weight))
  return {'rollout': rollout, 'rewards': judge, 'experience': experience}


def _experience(
  step: Step, before: dict[str, Program], documents: Batch, mesh: Mesh
) -> Experience:
  """What an update learns from, by shapes."""
  experience, _ = before['experience'].result(mesh)
  if step.likeliest is not None:
    experience = experience.replace(greedy_returns=_column(experience.weight, mesh))
  if documents:
    experience = experience.replace(aside={name: documents[name] for name in ASIDE})
  return experience


def _column(rows: jax.ShapeDtypeStruct, mesh: Mesh) -> jax.ShapeDtypeStruct:
  """f32[B], by shape."""
  return spread(jax.ShapeDtypeStruct(rows.shape, jnp.float32), mesh)
