"""Stage `reward`: an adapter with a scalar head over the anchor, from pairs, rankings, thumbs or
ratings; or an ensemble of them, trained at once on the same batches.

The best checkpoint by validation is the result, as in PERL, or the last one. Thumbs are compared
with a bag of words, and a head that starts from a probe with that start.
"""

import jax
import numpy as np
from ml_collections import ConfigDict

from perl import trees
from perl.data.examples import Example
from perl.evaluate import baseline, classification, regression
from perl.jobs import _artefacts as artefacts
from perl.jobs import _scoring as scoring
from perl.jobs import _setting as settings
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
  setting = settings.begin(config, workdir, 'reward')
  anchor = artefacts.load_anchor(setting)
  kind = scoring.example_kind(setting)
  train, dev, test = (setting.examples(split, kind) for split in ('train', 'dev', 'test'))
  train = some(train, config.reward.max_examples, config.seed)
  start = _initial_adapter(setting, anchor, train)
  if config.reward.probe:
    probed = _report(setting, test, scoring.predict(setting, anchor, start, test))
  adapter, result = _train(setting, anchor, start, train, dev)
  adapter = _aligned(setting, anchor, adapter, dev)
  artefacts.save_adapter(setting, anchor, adapter, head=True)
  scores = scoring.of_members(setting, anchor, adapter, test)
  report = _report(setting, test, scores.mean(0)) | _by_member(setting, test, scores)
  result = {f'dev_{k}': v for k, v in result.items() if k != 'step_seconds'} | {
    k: v for k, v in result.items() if k == 'step_seconds'
  }
  if kind == 'labelled':
    report |= _baseline(setting, train, test)
  if config.reward.probe:
    report |= {f'probe_{k}': v for k, v in probed.items() if VALIDATION[config.reward.kind] in k}
  return setting.finish({
    **result,
    **report,
    **step_memory(setting, anchor),
    'parameters_trainable': adapters.count(adapter),
    'parameters_total': trees.count(anchor.params),
  })


def some(examples: list[Example], count: int, seed: int) -> list[Example]:
  """The first `count` of them, shuffled by the seed: fewer are among more. All of them for 0.

  Raises:
    ValueError: there are not so many.
  """
  if count > len(examples):
    raise ValueError(f'expected at least reward.max_examples={count} examples to learn from, found '
                     f'{len(examples)}; lower it, or set 0 for all')
  if not count:
    return examples
  return [examples[i] for i in np.random.default_rng(seed).permutation(len(examples))[:count]]


def _make_step(setting: settings.Setting, anchor: artefacts.Base, tx, places: Tree):
  section = setting.config.reward
  loss = reward_losses.make_loss(
    anchor.model, kind=section.kind, margin=section.margin, centre=section.centre,
    dropout=setting.config.peft.dropout > 0,
  )
  if section.members > 1:
    loss = population.loss(loss, section.members)
  return steps.make_train_step(
    loss, tx, split=adapters.split, shardings=places, microbatches=section.microbatches
  )


def _new_adapter(setting: settings.Setting, anchor: artefacts.Base) -> Tree:
  """An adapter with its head; of an ensemble a stack, whose members differ by their keys."""
  section = setting.config.reward
  made = [
    artefacts.new_adapter(
      setting, anchor, member_key(setting, member), head=True, reads=section.reads,
      start=section.adapter,
    ) for member in range(section.members)
  ]
  if len(made) == 1:
    return made[0]
  return artefacts.place_adapter(adapters.stack(made), anchor.params, setting)


def member_key(setting: settings.Setting, member: int) -> jax.Array:
  """Of a member's initialisation. The first one is the model that would be trained alone."""
  return jax.random.fold_in(setting.key, _MEMBERS + member) if member else setting.key


def _aligned(
  setting: settings.Setting, anchor: artefacts.Base, adapter: Tree, dev: list[Example]
) -> Tree:
  """An ensemble whose members have one mean score over dev, where scores have no zero."""
  if setting.config.reward.kind not in ('pairwise', 'ranking') or not adapters.members(adapter):
    return adapter
  scores = scoring.of_members(setting, anchor, adapter, dev)
  means = np.nanmean(scores.reshape(len(scores), -1), -1)
  return artefacts.place_adapter(
    reward_model.align(adapter, means), anchor.params, setting)


def _initial_adapter(
  setting: settings.Setting, anchor: artefacts.Base, train: list[Example]
) -> Tree:
  """The adapter before the first update; its head is a probe's if the config wants one."""
  adapter = _new_adapter(setting, anchor)
  if not setting.config.reward.probe:
    return adapter
  head = scoring.probed_head(setting, anchor, adapter, train)
  return artefacts.place_adapter({**adapter, 'head': head}, anchor.params, setting)


def _train(
  setting: settings.Setting, anchor: artefacts.Base, adapter: Tree,
  train: list[Example], dev: list[Example],
) -> tuple[Tree, dict]:
  """The adapter after training, and its dev metrics."""
  section, kind = setting.config.reward, scoring.example_kind(setting)
  tx = setting.optimizer()
  state, places = artefacts.first_state(setting, anchor.params, adapter, tx)
  step = _make_step(setting, anchor, tx, places)

  def evaluate(state: steps.TrainState) -> dict[str, float]:
    scores = scoring.predict(setting, anchor, state.adapters, dev)
    report = _report(setting, dev, scores, bootstrap=0)
    return {k: v for k, v in report.items() if isinstance(v, float)}

  state, result = loop.fit(
    lambda state, batch: step(state, anchor.params, setting.place(batch)),
    state,
    setting.stream(setting.rows(train, kind), kind),
    meta=artefacts.run_meta(setting, anchor, head=True),
    evaluate=evaluate,
    best_metric=VALIDATION[section.kind] if section.keep == 'best' else '',
    **setting.loop_options(),
  )
  return state.adapters, result


def _report(
  setting: settings.Setting,
  examples: list[Example],
  scores: np.ndarray,
  bootstrap: int | None = None,
) -> dict:
  """Metrics of the scores that are there; `bootstrap` 0 leaves the intervals out."""
  n = setting.config.evaluate.bootstrap if bootstrap is None else bootstrap
  keep = np.isfinite(scores.reshape(len(examples), -1)).any(-1)
  examples, scores = [e for e, k in zip(examples, keep) if k], scores[keep]
  groups = [e.group for e in examples]
  kind, options = setting.config.reward.kind, dict(bootstrap=n, seed=setting.config.seed)
  if kind == 'pairwise':
    return classification.preference_report(scores[:, 0], scores[:, 1], groups, **options)
  if kind == 'ranking':
    return classification.ranking_report(scores, groups, **options)
  if kind == 'regression':
    return regression.rated_report(scores, [e.rating for e in examples], groups, **options)
  labels = np.array([e.label for e in examples])
  return classification.labelled_report(scores, labels, groups, **options)


def _by_member(
  setting: settings.Setting, examples: list[Example], scores: np.ndarray
) -> dict:
  """Of an ensemble: the members' own metrics, without intervals, and how much they disagree."""
  if len(scores) == 1:
    return {}
  found = {'members': len(scores), 'uncertainty': float(np.nanmean(scores.var(0)))}
  for member, own in enumerate(scores):
    report = _report(setting, examples, own, bootstrap=0)
    found |= {f'member_{member}_{k}': v for k, v in report.items() if isinstance(v, float)}
  return found


def _baseline(setting: settings.Setting, train: list[Example], test: list[Example]) -> dict:
  """The bag of words on the same split, under names that begin with 'baseline_'."""
  scores = baseline.fit_predict(train, test)
  return {f'baseline_{k}': v for k, v in _report(setting, test, scores).items() if 'auc' in k}


def step_memory(setting: settings.Setting, anchor: artefacts.Base) -> dict:
  """Bytes that the compiled train step needs, at the longest bucket; nothing is run."""
  kind = scoring.example_kind(setting)
  tx = setting.optimizer()
  rows = setting.rows(setting.examples('dev', kind), kind)
  batch = memory.longest(
    setting.evaluation_batches(rows, kind, shared_prompt=setting.config.reward.share_prompt))
  batch = memory.resized(batch, setting.config.reward.batch_size)
  adapter = _new_adapter(setting, anchor)
  state, places = artefacts.first_state(setting, anchor.params, adapter, tx)
  step = _make_step(setting, anchor, tx, places)
  return memory.of_step(step, state, anchor.params, setting.place(batch))
