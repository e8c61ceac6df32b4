"""The compiled programs of each trained stage, on shapes alone: no array, no data, no tokenizer.

They are made by the functions that the jobs call, over trees that `jax.eval_shape` makes with those
same functions. So what is lowered here is what a job runs at its longest batch, and a forecast
cannot drift from it.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from perl.data import tokenizer as tokenizers
from perl.data.examples import Demonstration, Document, Example, Labelled, Preference, Prompt
from perl.jobs import artefacts, language, reward, rl, scoring
from perl.jobs.setting import Setting
from perl.models import lm
from perl.peft import adapters
from perl.rl.rollout import rollout
from perl.train import memory, sharding
from perl.train import step as steps
from perl.types import Batch, Tree

STAGES = ('pretrain', 'sft', 'reward', 'rl')
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


class Vocabulary(NamedTuple):
  """What shapes need of a tokenizer: one id a character, as many ids as config says."""

  vocab_size: int
  pad_id: int = 0
  bos_id: int = 1
  eos_id: int = 2
  adds_bos: bool = True
  chat_template: None = None

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids beyond the special ones, different where characters are."""
    return [[3 + ord(character) % 8 for character in text] for text in texts]


class Plan(Setting):
  """A job's setting that stands on no disk: a stand-in for the tokenizer, shapes for batches."""

  def _vocabulary(self) -> Vocabulary:
    """As many tokens as the config will have; a checkpoint and a published size keep their own."""
    c = self.config
    if c.tokenizer.path and not c.model.checkpoint:
      return Vocabulary(tokenizers.load(c.tokenizer.path).vocab_size)
    return Vocabulary(1 if c.model.checkpoint else c.tokenizer.vocab_size)

  @functools.cached_property
  def anchor(self) -> artefacts.Base:
    """The frozen parameters of every stage, by shape: anchor and base are alike in it."""
    model = self.model(self.tokenizer.vocab_size)
    params = lm.abstract(model)
    return artefacts.Base(model, placed(params, sharding.base_shardings(params, self.mesh)), '')

  def place(self, batch: Batch) -> Batch:
    """Shapes of the batch with config.<stage>.batch_size rows, spread over the mesh."""
    rows, spread = self.config[self.stage].batch_size, sharding.batch_sharding(self.mesh)
    ways = self.mesh.shape['data'] * self.mesh.shape['fsdp']
    if rows % ways:
      raise ValueError(
        f'expected {self.stage}.batch_size to divide over the {ways} devices of the mesh, found '
        f'{rows}; change it, or config.mesh.data and config.mesh.fsdp'
      )
    shape = lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=spread)
    return {name: shape(x) for name, x in batch.items()}

  def batch(self, kind: str) -> Batch:
    """The longest batch of a kind, through the pipeline that batches come from."""
    rows = self.rows([self.longest(kind)], kind)
    return self.place(memory.longest(self.evaluation_batches(rows, kind)))

  def longest(self, kind: str) -> Example:
    """An example that fills the config's limits to the last token (bos and eos are added)."""
    c = self.config.data
    prompt, response = 'p' * (c.max_prompt_tokens - 1), 'r' * (c.max_response_tokens - 1)
    return {
      'document': lambda: Document(prompt + 'p' + response),
      'demonstration': lambda: Demonstration(prompt, response),
      'labelled': lambda: Labelled(prompt, response, 1.0),
      'preference': lambda: Preference(prompt, response, 's' * max(1, len(response))),
      'prompt': lambda: Prompt(prompt),
    }[kind]()

  def adapter(self, make: Callable[['Plan', artefacts.Base], Tree]) -> Tree:
    """make(setting, anchor) by shapes, on the mesh."""
    base, model = self.anchor.params, self.anchor.model
    found = jax.eval_shape(lambda params: make(self, artefacts.Base(model, params, '')), base)
    return placed(found, sharding.state_shardings(found, base, self.mesh))

  def first_state(self, learning: Tree, tx: Any) -> tuple[steps.TrainState, Tree]:
    """`artefacts.first_state` by shapes."""
    placements = []

    def make(base, learning):
      state, places = artefacts.first_state(self, base, learning, tx)
      placements.append(places)
      return state

    state = jax.eval_shape(make, self.anchor.params, learning)
    return placed(state, placements[0]), placements[0]


def placed(tree: Tree, shardings: Tree) -> Tree:
  """Shapes with their placement."""
  return jax.tree.map(lambda x, s: x.update(sharding=s), tree, shardings)


def stage(config: ConfigDict, name: str) -> Stage:
  """What stage `name` of a valid config holds and runs on the devices that jax has.

  Raises:
    ValueError: no such stage; what the jobs themselves refuse of mesh, size, batch or adapter.
  """
  makers = {'pretrain': _pretrain, 'sft': _sft, 'reward': _reward, 'rl': _rl}
  if name not in makers:
    raise ValueError(f'expected a stage among {", ".join(STAGES)}, found {name!r}')
  return makers[name](Plan(config, '', name))


def programs(config: ConfigDict, names: Sequence[str] = STAGES) -> dict[str, dict[str, Program]]:
  """{stage: {program: Program}} of a valid config."""
  return {name: stage(config, name).programs for name in names}


def _updating(plan: Plan, state, step, batch: Batch) -> Stage:
  """A stage with an update and nothing else."""
  update = Program(step, (state, plan.anchor.params, batch), batch)
  return Stage(plan.anchor.model, plan.anchor.params, state, {}, batch, {'update': update})


def _language(plan: Plan, adapter: Tree, *, dropout: bool, kind: str) -> Stage:
  tx = plan.optimizer()
  state, places = plan.first_state(adapter, tx)
  step = steps.make_train_step(
    language.make_loss(plan.anchor.model, dropout=dropout), tx, split=adapters.split,
    shardings=places, microbatches=plan.config[plan.stage].microbatches,
  )
  return _updating(plan, state, step, plan.batch(kind))


def _pretrain(plan: Plan) -> Stage:
  adapter = plan.adapter(lambda plan, base: adapters.init(plan.key, base.params, 'full'))
  return _language(plan, adapter, dropout=False, kind='document')


def _sft(plan: Plan) -> Stage:
  start = plan.config.sft.adapter
  adapter = plan.adapter(
    lambda plan, base: artefacts.new_adapter(plan, base, plan.key, start=start))
  return _language(plan, adapter, dropout=plan.config.peft.dropout > 0, kind='demonstration')


def _reward(plan: Plan) -> Stage:
  tx = plan.optimizer()
  state, places = plan.first_state(plan.adapter(reward._new_adapter), tx)
  step = reward._make_step(plan, plan.anchor, tx, places)
  return _updating(plan, state, step, plan.batch(scoring.example_kind(plan)))


def _rl(plan: Plan) -> Stage:
  section, anchor = plan.config.rl, plan.anchor
  algorithm = importlib.import_module(f'perl.rl.{section.algorithm}')
  roles = algorithm.trains(section.baseline)
  learning = {
    role: plan.adapter(lambda plan, base, role=role: rl._fresh(plan, base, role)) for role in roles
  }
  frozen = {'reference': learning['policy'], 'reward': plan.adapter(reward._new_adapter)}
  tx = rl._optimizer(plan, roles)
  state, places = plan.first_state(learning, tx)
  step = rl.Step(plan, anchor, frozen, algorithm, tx, places, offset=0.0)
  batch = plan.batch('prompt')
  prompts = batch['tokens'], batch['mask']
  key = state.key  # the rollout's is folded out of it, and alike
  arrays = (anchor.params, state.adapters['policy'], *prompts, key)
  sample = functools.partial(rollout, anchor.model, **step.sampling)
  sampled = _spread(jax.eval_shape(sample, *arrays), plan)
  offset = _spread(jax.eval_shape(lambda: 0.0), plan)
  judged = (anchor.params, frozen, sampled, batch['weight'], offset)
  experience = _spread(jax.eval_shape(step.experience, *judged)[0], plan)
  found = {
    'rollout': Program(rollout, (anchor.model, *arrays), prompts, step.sampling),
    'experience': Program(step.experience, judged, (sampled, batch['weight'])),
    'update': Program(step.update, (state, anchor.params, experience), experience),
  }
  return Stage(anchor.model, anchor.params, state, frozen, batch, found)


def _spread(tree: Tree, plan: Plan) -> Tree:
  """What one program hands to the next: rows over the mesh, as the compiler leaves them."""
  rows, whole = sharding.batch_sharding(plan.mesh), None
  if plan.mesh.size > 1:
    whole = NamedSharding(plan.mesh, jax.sharding.PartitionSpec())
  return jax.tree.map(lambda x: x.update(
    sharding=None if plan.mesh.size == 1 else rows if x.ndim else whole), tree)
