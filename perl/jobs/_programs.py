"""The compiled programs of each trained stage, on shapes alone: no array, no data, no tokenizer.

They are made by the functions that the jobs call, over trees that `jax.eval_shape` makes with those
same functions. So what is lowered here is what a job runs at its longest batch, and a forecast
cannot drift from it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from perl.jobs import (
  _artefacts as artefacts,
)
from perl.jobs import (
  _language as language,
)
from perl.jobs import (
  _scoring as scoring,
)
from perl.jobs import (
  preference,
  reward,
  rl,
)
from perl.jobs._collect import ASIDE, Step
from perl.jobs._plan import Plan, placed, spread
from perl.peft import adapters
from perl.preference.direct import Frozen
from perl.rl import statistics
from perl.train import sharding
from perl.train import step as steps
from perl.types import Batch, Tree

STAGES = ('pretrain', 'sft', 'reward', 'preference', 'rl')
"""The stages that have programs worth a forecast, in the order of a pipeline."""


class Program(NamedTuple):
  """A jitted function with what it is called with, by shape."""

  function: Any  # jax.jit's
  arguments: tuple
  batch: Tree  # those of the arguments that are the step's own: prompts, rollouts, experience
  static: dict[str, Any] = {}  # keyword arguments that are no arrays

  def trace(self) -> jax.stages.Traced:
    """The program as a jaxpr."""
    return self.function.trace(*self.arguments, **self.static)

  def lower(self) -> jax.stages.Lowered:
    """The program as StableHLO."""
    return self.trace().lower()

  def compile(self, options: dict[str, str] | None = None) -> jax.stages.Compiled:
    """The program for the default backend, with options of its compiler; nothing is run."""
    return self.lower().compile(options)


class Stage(NamedTuple):
  """What a stage holds on its devices, and what it runs there.

  Every tree is of jax.ShapeDtypeStruct, with its placement on the mesh.
  """

  model: Any  # perl.models.transformer.Transformer
  base: Tree  # frozen parameters
  state: steps.TrainState  # what learns; in rl its adapters are by role
  frozen: dict[str, Tree]  # adapters that do not learn, by role
  batch: Batch  # of the training stream, at its longest
  programs: dict[str, Program]  # in the order in which a step runs them


def stage(config: ConfigDict, name: str) -> Stage:
  """What stage `name` of a valid config holds and runs on the devices that jax has.

  Raises:
    ValueError: no such stage; what the jobs themselves refuse of mesh, size, batch or adapter.
  """
  makers = {'pretrain': _pretrain, 'sft': _sft, 'reward': _reward,
            'preference': _preference, 'rl': _rl}
  _check(name)
  return makers[name](Plan(config, '', name))


def learner(config: ConfigDict, name: str) -> tuple[Tree, steps.TrainState]:
  """(frozen base, what stage `name` learns before its first step), by shapes; without programs.

  Raises:
    ValueError: as `stage`.
  """
  _check(name)
  plan = Plan(config, '', name)
  return plan.anchor.params, plan.first_state(*_learns(plan))[0]


def programs(config: ConfigDict, names: Sequence[str] = STAGES) -> dict[str, dict[str, Program]]:
  """{stage: {program: Program}} of a valid config."""
  return {name: stage(config, name).programs for name in names}


def _check(name: str) -> None:
  if name not in STAGES:
    raise ValueError(f'expected a stage among {", ".join(STAGES)}, found {name!r}')


def _learns(plan: Plan) -> tuple[Tree, Any]:
  """(the adapter that the stage trains, in rl those that it trains by role; their optimizer)."""
  if plan.stage != 'rl':
    make = {'pretrain': _full_copy, 'sft': _sft_adapter, 'reward': reward._new_adapter,
            'preference': preference.new_adapter}[plan.stage]
    return plan.adapter(make), plan.optimizer()
  learning = {
    role: plan.adapter(lambda plan, base, role=role: _fresh(plan, base, role))
    for role in rl.learners(plan)
  }
  return learning, rl._optimizer(plan)


def _full_copy(plan: Plan, base: artefacts.Base) -> Tree:
  return adapters.init(plan.key, base.params, 'full')


def _sft_adapter(plan: Plan, base: artefacts.Base) -> Tree:
  return artefacts.new_adapter(plan, base, plan.key, start=plan.config.sft.adapter)


def _fresh(plan: Plan, base: artefacts.Base, role: str) -> Tree:
  """A role's adapter by shapes, which are the same whatever it begins as."""
  start = '' if role == 'critic' else plan.config.rl.adapter
  return artefacts.new_adapter(plan, base, plan.key, head=role == 'critic', start=start)


def _updating(plan: Plan, state, step, batch: Batch) -> Stage:
  """A stage with an update and nothing else."""
  update = Program(step, (state, plan.anchor.params, batch), batch)
  return Stage(plan.anchor.model, plan.anchor.params, state, {}, batch, {'update': update})


def _language(plan: Plan, *, dropout: bool, kind: str) -> Stage:
  adapter, tx = _learns(plan)
  state, places = plan.first_state(adapter, tx)
  step = steps.make_train_step(
    language.make_loss(plan.anchor.model, dropout=dropout), tx, split=adapters.split,
    shardings=places, microbatches=plan.config[plan.stage].microbatches,
  )
  return _updating(plan, state, step, plan.batch(kind))


def _pretrain(plan: Plan) -> Stage:
  return _language(plan, dropout=False, kind='document')


def _sft(plan: Plan) -> Stage:
  return _language(plan, dropout=plan.config.peft.dropout > 0, kind='demonstration')


def _reward(plan: Plan) -> Stage:
  adapter, tx = _learns(plan)
  state, places = plan.first_state(adapter, tx)
  step = reward._make_step(plan, plan.anchor, tx, places)
  return _updating(plan, state, step, plan.batch(scoring.example_kind(plan)))


def _preference(plan: Plan) -> Stage:
  adapter, tx = _learns(plan)
  state, places = plan.first_state(adapter, tx)
  anchor, method, frozen = plan.anchor, preference.make_method(plan), {}
  if method.reference:
    frozen['reference'] = plan.adapter(
      lambda plan, base: artefacts.reference(plan, base, preference.new_adapter(plan, base)))
  step, batch = preference.make_step(plan, anchor, method, tx, places), plan.batch(method.examples)
  fixed = Frozen(anchor.params, frozen.get('reference'))
  update = Program(step, (state, fixed, batch), batch)
  return Stage(anchor.model, anchor.params, state, frozen, batch, {'update': update})


def _rl(plan: Plan) -> Stage:
  anchor = plan.anchor
  learning, tx = _learns(plan)
  reference = plan.adapter(
    lambda plan, base: artefacts.reference(plan, base, _fresh(plan, base, 'policy')))
  frozen = {'reference': reference}
  if plan.config.rl.reward_weight:
    frozen['reward'] = plan.adapter(reward._new_adapter)
  state, places = plan.first_state(learning, tx, statistics.first(**plan.config.rl))
  batch, made = plan.batch('prompt'), []

  def lay_out(params):
    step = Step(plan, artefacts.Base(anchor.model, params, ''), frozen, tx, places, offset=0.0)
    made.append(step)
    return step.base

  bases = jax.eval_shape(lay_out, anchor.params)
  bases = placed(bases, sharding.base_shardings(bases, plan.mesh))
  step = made[0]
  found, experience = _gathered(step, plan, (state, bases, frozen), batch)
  found['update'] = Program(step.update, (state, bases, experience), experience)
  return Stage(anchor.model, bases, state, frozen, batch, found)


def _gathered(
  step: Step, plan: Plan, held: tuple[Tree, Tree, Tree], batch: Batch
) -> tuple[dict[str, Program], Tree]:
  """What a step runs before its update: its programs by name, and the experience that they make.

  `held` is (state, base, frozen adapters).
  """
  placements: dict[int, jax.ShapeDtypeStruct] = {}
  recorders = {
    'rollout': _Recorder(step.sample, plan, placements),
    'experience': _Recorder(step.experience, plan, placements),
  }
  step.sample, step.experience = recorders.values()

  def gather(now, prompts):
    placements.update(zip(map(id, jax.tree.leaves(now)), jax.tree.leaves(held)))
    state, step.base, step.frozen = now
    return step.gather(state, prompts)[0]

  experience = spread(jax.eval_shape(gather, held, batch), plan.mesh)
  if plan.config.rl.ptx:
    documents = plan.batch('document', plan.config.rl.batch_size)
    experience = experience.replace(aside={name: documents[name] for name in ASIDE})
  return {name: recorder.program for name, recorder in recorders.items()}, experience


class _Recorder:
  """Stands in for a jitted function while a step is traced, and keeps what it is called with.

  `placements` holds what the stage holds, by the identity of what stands for it while tracing;
  everything else has a row for each example.
  """

  def __init__(self, function: Any, plan: Plan, placements: dict[int, jax.ShapeDtypeStruct]):
    self.function, self.plan, self.placements = function, plan, placements
    self.program: Program | None = None

  def __call__(self, *arguments: Any, **static: Any) -> Tree:
    """The function's own result."""
    batch = []

    def shape(x: Any) -> Any:
      if not hasattr(x, 'shape') or id(x) in self.placements:
        return self.placements.get(id(x), x)
      batch.append(spread(x.aval, self.plan.mesh))
      return batch[-1]

    shapes = jax.tree.map(shape, arguments)
    self.program = Program(self.function, shapes, batch, static)
    return self.function(*arguments, **static)
