"""Stage `reward`: an adapter with a scalar head over the anchor, from pairs, rankings, thumbs or
ratings; or an ensemble of them, trained at once on the same batches.

The best checkpoint by validation is the result, as in PERL, or the last one. Thumbs are compared
with a bag of words, and a head that starts from a probe with that start.
"""

from collections.abc import Callable

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from perl import trees
from perl.data.examples import SPLITS, Example
from perl.evaluate import baseline, classification, regression
from perl.jobs import _run as runs
from perl.jobs import _scoring as scoring
from perl.jobs._artefacts import Artefacts, Base
from perl.jobs._data import Data
from perl.jobs._plan import Plan, Stage
from perl.jobs._run import Run
from perl.peft import adapters
from perl.preference import reward_losses, reward_model
from perl.train import loop, memory, population
from perl.train import step as steps
from perl.types import Tree

VALIDATION = {
  'pairwise': 'pair_accuracy', 'pointwise': 'auc', 'ranking': 'pair_accuracy',
  'regression': 'spearman',
}
"""reward.kind -> what picks the best checkpoint."""

_MEMBERS = 1000
"""Keys of members begin here, beyond those that an adapter folds in."""


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves adapter/ in workdir; returns the test metrics of the chosen checkpoint."""
  run = runs.begin(config, workdir, 'reward')
  artefacts = Artefacts(run)
  data, anchor = artefacts.data, artefacts.anchor()
  kind, scorer = scoring.example_kind(run), scoring.Scorer(run, data, anchor)
  train = data.examples('train', kind)
  dev, test = (data.some(data.examples(split, kind)) for split in ('dev', 'test'))
  train = some(train, config.reward.max_examples, config.seed, config.reward.skip_examples)
  start = _initial_adapter(artefacts, scorer, train)
  if config.reward.probe:
    probed = _report(run, test, scorer.predict(start, test))
  adapter, result = _train(artefacts, scorer, start, train, dev)
  adapter = _aligned(artefacts, scorer, adapter, dev)
  artefacts.save_adapter(anchor, adapter, head=True)
  scores = scorer.of_members(adapter, test)
  report = _report(run, test, scores.mean(0)) | _by_member(run, test, scores)
  if kind == 'labelled':
    report |= _baseline(run, train, test)
  if config.reward.probe:
    report |= {f'probe_{k}': v for k, v in probed.items() if VALIDATION[config.reward.kind] in k}
  return run.finish({
    **runs.training_result(result),
    **report,
    **step_memory(artefacts, anchor),
    'parameters_trainable': adapters.count(adapter),
    'parameters_total': trees.count(anchor.params),
  })


def some(examples: list[Example], count: int, seed: int, skip: int = 0) -> list[Example]:
  """The first `count` after `skip` of them, shuffled by the seed: fewer are among more.

  All of them for 0.

  Raises:
    ValueError: there are not so many.
  """
  if skip + count > len(examples) or skip == len(examples):
    skipped = f' after reward.skip_examples={skip}' if skip else ''
    raise ValueError(f'expected at least reward.max_examples={count} examples to learn from'
                     f'{skipped}, found {len(examples)}; lower it, or set 0 for all')
  if not count and not skip:
    return examples
  shuffled = np.random.default_rng(seed).permutation(len(examples))[skip:]
  return [examples[i] for i in shuffled[:count or None]]


def make_step(
  run: Run, anchor: Base, tx: optax.GradientTransformation, places: Tree
) -> Callable:
  """The update ``(state, base, batch) -> (state, metrics)``."""
  section = run.section
  loss = reward_losses.make_loss(
    anchor.model, kind=section.kind, margin=section.margin, centre=section.centre,
    dropout=run.config.peft.dropout > 0)
  if section.members > 1:
    loss = population.loss(loss, section.members)
  return steps.make_train_step(
    loss, tx, split=adapters.split, shardings=places, microbatches=section.microbatches)


def new_adapter(artefacts: Artefacts, anchor: Base) -> Tree:
  """An adapter with its head; of an ensemble a stack, whose members differ by their keys."""
  run, section = artefacts.run, artefacts.run.config.reward
  members = [
    artefacts.new_adapter(
      anchor, member_key(run, member), head=True, reads=section.reads, start=section.adapter)
    for member in range(section.members)]
  if len(members) == 1:
    return members[0]
  return artefacts.place(adapters.stack(members), anchor.params)


def member_key(run: Run, member: int) -> jax.Array:
  """Of a member's initialisation. The first one is the model that would be trained alone."""
  return jax.random.fold_in(run.key, _MEMBERS + member) if member else run.key


def _aligned(
  artefacts: Artefacts, scorer: scoring.Scorer, adapter: Tree, dev: list[Example]
) -> Tree:
  """An ensemble whose members have one mean score over dev, where scores have no zero."""
  if artefacts.run.section.kind not in ('pairwise', 'ranking') or not adapters.members(adapter):
    return adapter
  scores = scorer.of_members(adapter, dev)
  means = np.nanmean(scores.reshape(len(scores), -1), -1)
  return artefacts.place(reward_model.align(adapter, means), scorer.anchor.params)


def _initial_adapter(
  artefacts: Artefacts, scorer: scoring.Scorer, train: list[Example]
) -> Tree:
  """The adapter before the first update; its head is a probe's if the config wants one."""
  adapter = new_adapter(artefacts, scorer.anchor)
  if not artefacts.run.section.probe:
    return adapter
  head = scorer.probed_head(adapter, train)
  return artefacts.place({**adapter, 'head': head}, scorer.anchor.params)


def _train(
  artefacts: Artefacts, scorer: scoring.Scorer, adapter: Tree, train: list[Example],
  dev: list[Example],
) -> tuple[Tree, dict]:
  """The adapter after training, and its dev metrics."""
  run, data, anchor = artefacts.run, artefacts.data, scorer.anchor
  section, kind, tx = run.section, scoring.example_kind(run), run.optimizer()
  state, places = run.first_state(anchor.params, adapter, tx)
  step = make_step(run, anchor, tx, places)

  def evaluate(state: steps.TrainState) -> dict[str, float]:
    report = _report(run, dev, scorer.predict(state.adapters, dev), bootstrap=0)
    return {k: v for k, v in report.items() if isinstance(v, float)}

  stream = data.stream(data.rows(train, kind), kind)
  run.compile_ahead(step, state, anchor.params, stream)
  state, result = loop.fit(
    lambda state, batch: step(state, anchor.params, run.place(batch)),
    state,
    stream,
    evaluate=evaluate,
    best_metric=VALIDATION[section.kind],
    keep_best=section.keep == 'best',
    **artefacts.resumed(anchor, head=True),
    **run.loop_options(),
  )
  return state.adapters, result


def _report(
  run: Run,
  examples: list[Example],
  scores: np.ndarray,
  bootstrap: int | None = None,
) -> dict:
  """Metrics of the scores that are there; `bootstrap` 0 leaves the intervals out."""
  n = run.config.evaluate.bootstrap if bootstrap is None else bootstrap
  keep = np.isfinite(scores.reshape(len(examples), -1)).any(-1)
  examples, scores = [e for e, k in zip(examples, keep) if k], scores[keep]
  groups = [e.group for e in examples]
  kind, options = run.config.reward.kind, dict(bootstrap=n, seed=run.config.seed)
  if kind == 'pairwise':
    return classification.preference_report(scores[:, 0], scores[:, 1], groups, **options)
  if kind == 'ranking':
    return classification.ranking_report(scores, groups, **options)
  if kind == 'regression':
    return regression.rated_report(scores, [e.rating for e in examples], groups, **options)
  labels = np.array([e.label for e in examples])
  return classification.labelled_report(scores, labels, groups, **options)


def _by_member(
  run: Run, examples: list[Example], scores: np.ndarray
) -> dict:
  """Of an ensemble: the members' own metrics, without intervals, and how much they disagree."""
  if len(scores) == 1:
    return {}
  report = {'members': len(scores), 'uncertainty': float(np.nanmean(scores.var(0)))}
  for member, own in enumerate(scores):
    metrics = _report(run, examples, own, bootstrap=0)
    report |= {f'member_{member}_{k}': v for k, v in metrics.items() if isinstance(v, float)}
  return report


def _baseline(run: Run, train: list[Example], test: list[Example]) -> dict:
  """The bag of words on the same split, under names that begin with 'baseline_'."""
  scores = baseline.fit_predict(train, test)
  return {f'baseline_{k}': v for k, v in _report(run, test, scores).items() if 'auc' in k}


def step_memory(artefacts: Artefacts, anchor: Base) -> dict:
  """Bytes that the compiled train step needs, at the longest bucket; nothing is run."""
  run, data, tx = artefacts.run, artefacts.data, artefacts.run.optimizer()
  kind = scoring.example_kind(run)
  rows = data.rows(data.examples('dev', kind), kind)
  batch = memory.longest(
    data.evaluation_batches(rows, kind, shared_prompt=run.section.share_prompt))
  batch = memory.resized(batch, run.section.batch_size)
  state, places = run.first_state(anchor.params, new_adapter(artefacts, anchor), tx)
  step = make_step(run, anchor, tx, places)
  return memory.of_step(step, state, anchor.params, run.place(batch))


def needs(data: Data) -> list[tuple[str, str]]:
  """(kind, split) of the examples that the stage reads."""
  return [(scoring.example_kind(data.run), split) for split in SPLITS]


def learns(plan: Plan) -> tuple[Tree, optax.GradientTransformation]:
  """(what learns, by shapes; its optimizer)."""
  return plan.adapter(lambda base: new_adapter(plan.artefacts, base)), plan.run.optimizer()


def programs(plan: Plan) -> Stage:
  """What the stage holds and runs, by shapes."""
  learning, tx = learns(plan)
  state, places = plan.first_state(learning, tx)
  step = make_step(plan.run, plan.anchor, tx, places)
  return plan.updating(state, step, plan.batch(scoring.example_kind(plan.run)))
