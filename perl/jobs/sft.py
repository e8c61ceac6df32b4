"""Stage `sft`: supervised fine-tuning of an adapter on demonstrations. Its result is the anchor."""

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from perl import trees
from perl.evaluate import merging
from perl.jobs import _language as language
from perl.jobs import _responses as responses
from perl.jobs import _run as runs
from perl.jobs._artefacts import Artefacts, Base
from perl.jobs._data import Data
from perl.jobs._plan import Plan, Stage
from perl.peft import adapters, rounding
from perl.train import loop
from perl.train import step as steps
from perl.types import Tree


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves adapter/ in workdir; returns the dev loss, and the gold reward where there is one."""
  run = runs.begin(config, workdir, 'sft')
  artefacts = Artefacts(run)
  data, base = artefacts.data, artefacts.base()
  rows, dev = (data.demonstrations(split) for split in ('train', 'dev'))
  adapter, tx = new_adapter(artefacts, base), run.optimizer()
  state, places = run.first_state(base.params, adapter, tx)
  step = language.make_step(
    base.model, tx, places, dropout=_dropout(config), microbatches=config.sft.microbatches)
  limit = config.evaluate.max_examples or len(dev)
  batches = [run.place(b) for b in data.evaluation_batches(dev[:limit], 'demonstration')]
  stream = data.stream(rows, 'demonstration')
  run.compile_ahead(step, state, base.params, stream)
  state, result = loop.fit(
    lambda state, batch: step(state, base.params, run.place(batch)),
    state,
    stream,
    evaluate=language.make_evaluation(base.model, base.params, batches),
    best_metric='loss',
    best_mode='min',
    **artefacts.resumed(base),
    **run.loop_options(),
  )
  artefacts.save_adapter(base, state.adapters)
  if hasattr(data.dataset, 'gold_reward'):
    result |= _gold(artefacts, base, state.adapters)
  if adapters.mergeable(base.params, state.adapters):
    result['merge_logit_difference'] = merging.logit_difference(
      base.model, base.params, state.adapters, batches[0]['tokens'], batches[0]['mask'])
    result['merge_update_error'] = rounding.error(
      base.params, state.adapters, base.model.config.dtype)
  if config.sft.test:
    result |= _test(artefacts, base, state)
  return run.finish({
    **result,
    'parameters_trainable': adapters.count(state.adapters),
    'parameters_total': trees.count(base.params),
  })


def new_adapter(artefacts: Artefacts, base: Base) -> Tree:
  """What learns, before its first update."""
  run = artefacts.run
  return artefacts.new_adapter(base, run.key, start=run.config.sft.adapter)


def _dropout(config: ConfigDict) -> bool:
  return config.peft.dropout > 0


def _test(artefacts: Artefacts, base: Base, state: steps.TrainState) -> dict:
  """Of test, as many as are answered: the loss, and the likeliest against the agents' own turns,
  or against all references of a prompt.
  """
  run, data = artefacts.run, artefacts.data
  rows = data.some(data.demonstrations('test'))
  batches = [run.place(b) for b in data.evaluation_batches(rows, 'demonstration')]
  loss = language.make_evaluation(base.model, base.params, batches)(state)
  turns = data.turns('test')
  answers = responses.respond(run, data, base, state.adapters, turns, run.key, temperature=0.0)
  means = {name: float(np.nanmean(values))
           for name, values in responses.compared(data, turns, answers).items()}
  means |= responses.beside_references(data, turns, answers)
  return {f'test_{name}': value for name, value in {**loss, **means}.items()}


def _gold(artefacts: Artefacts, base: Base, adapter: Tree) -> dict:
  """The mean gold reward of one sample for each test prompt, where the dataset knows one."""
  run, data = artefacts.run, artefacts.data
  examples = data.answered('test')
  answers = responses.respond(run, data, base, adapter, examples, jax.random.fold_in(run.key, 1))
  return {'gold_reward': float(data.gold_rewards(examples, answers.texts).mean())}


def needs(data: Data) -> list[tuple[str, str]]:
  """(kind, split) of the examples that the stage reads."""
  config = data.run.config.sft
  kind = 'document' if config.whole_chats else 'demonstration'
  pairs = [(kind, 'train'), (kind, 'dev')]
  if hasattr(data.dataset, 'gold_reward'):
    pairs += data.offered('prompt', 'test')
  if config.test:
    pairs += [(kind, 'test'), *data.offered('demonstration', 'test')]
  return pairs


def learns(plan: Plan) -> tuple[Tree, optax.GradientTransformation]:
  """(what learns, by shapes; its optimizer)."""
  return plan.adapter(lambda base: new_adapter(plan.artefacts, base)), plan.run.optimizer()


def programs(plan: Plan) -> Stage:
  """What the stage holds and runs, by shapes."""
  return language.programs(
    plan, *learns(plan), dropout=_dropout(plan.run.config), kind='demonstration')
