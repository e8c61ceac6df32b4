"""Stage `pretrain`: next-token prediction, from scratch or from a checkpoint. Its result is a base.

Pretraining is full tuning of random weights: the same step, the same adapter protocol, and at the
end one merge.
"""

import logging

import optax
from ml_collections import ConfigDict

from perl import trees
from perl.jobs import _language as language
from perl.jobs import _run as runs
from perl.jobs._artefacts import Artefacts
from perl.jobs._data import Data
from perl.jobs._plan import Plan, Stage
from perl.models import lm
from perl.peft import adapters, rounding
from perl.train import loop, sharding
from perl.types import Tree


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves base/ in workdir; returns the dev loss, nats per token."""
  run = runs.begin(config, workdir, 'pretrain')
  artefacts = Artefacts(run)
  data, model = artefacts.data, artefacts.model()
  rows, dev = (data.rows(data.examples(split, 'document'), 'document')
               for split in ('train', 'dev'))
  if config.model.checkpoint:
    params = artefacts.published(model).params
  else:
    params = lm.init(model, run.key)
    params = sharding.place(params, sharding.base_shardings(params, run.mesh))
  adapter = artefacts.place(adapters.init(run.key, params, 'full'), params)
  tx = run.optimizer()
  state, places = run.first_state(params, adapter, tx)
  step = language.make_step(model, tx, places, dropout=False, microbatches=run.section.microbatches)
  batches = [run.place(batch) for batch in data.evaluation_batches(dev, 'document')]
  stream = data.stream(rows, 'document')
  run.compile_ahead(step, state, params, stream)
  state, result = loop.fit(
    lambda state, batch: step(state, params, run.place(batch)),
    state,
    stream,
    evaluate=language.make_evaluation(model, params, batches),
    **artefacts.resumed(),
    **run.loop_options(),
  )
  artefacts.save_base(model, adapters.merge(params, state.adapters))
  if (lost := rounding.error(params, state.adapters)) > rounding.LIMIT:
    logging.warning('pretrain: %s rounds %.0f %% of what was learnt away; set '
                    'model.param_dtype=float32', config.model.param_dtype, 100 * lost)
  total = trees.count(params)
  return run.finish({**result, 'merge_update_error': lost, 'parameters_total': total,
                     'parameters_trainable': total})


def needs(data: Data) -> list[tuple[str, str]]:
  """(kind, split) of the examples that the stage reads."""
  del data
  return [('document', 'train'), ('document', 'dev')]


def learns(plan: Plan) -> tuple[Tree, optax.GradientTransformation]:
  """(what learns, by shapes: a copy of everything; its optimizer)."""
  full = plan.adapter(lambda base: adapters.init(plan.run.key, base.params, 'full'))
  return full, plan.run.optimizer()


def programs(plan: Plan) -> Stage:
  """What the stage holds and runs, by shapes."""
  return language.programs(plan, *learns(plan), dropout=False, kind='document')
