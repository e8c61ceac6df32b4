"""Stage `preference`: the policy's adapter learns from preferences, without reward model or RL.

DPO and its kin (perl/preference/methods) over the SFT anchor. The reference is the policy's own
adapter before its first update, frozen; methods that have none never read it while they train. The
result is judged by its implicit reward on held-out examples, as a reward model would be, and by
what it says to the test prompts: gold reward where there is one, and KL to the anchor.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from perl import trees
from perl.data.examples import Example, Labelled
from perl.evaluate import classification, probe
from perl.jobs import _artefacts as artefacts
from perl.jobs import _responses as responses
from perl.jobs import _setting as settings
from perl.peft import adapters
from perl.preference import direct, methods
from perl.preference.direct import Frozen
from perl.train import loop
from perl.train import step as steps
from perl.types import Batch, Tree

Attach = Callable[[Batch], Batch]


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves adapter/ (the policy's) in workdir; returns the test metrics before and after."""
  setting = settings.begin(config, workdir, 'preference')
  anchor, method = artefacts.load_anchor(setting), make_method(setting)
  train, dev, test = (examples(setting, method, split) for split in ('train', 'dev', 'test'))
  policy = new_adapter(setting, anchor)
  reference = artefacts.reference(setting, anchor, policy)
  frozen = Frozen(anchor.params, reference if method.reference else None)
  start = _said(setting, anchor, reference, policy)
  tx = setting.optimizer()
  state, places = artefacts.first_state(setting, anchor.params, policy, tx)
  step = make_step(setting, anchor, method, tx, places)
  rows = setting.rows(train, method.examples)
  attach = _attach(setting, anchor, method, frozen, rows, len(train))
  measure_dev, measure_test = (
    _make_evaluation(setting, anchor, method, frozen, responses.some(setting, split))
    for split in (dev, test))
  state, result = loop.fit(
    lambda state, batch: step(state, frozen, setting.place(attach(batch))),
    state,
    setting.stream(rows, method.examples),
    meta=artefacts.run_meta(setting, anchor, head=False),
    evaluate=measure_dev,
    **setting.loop_options(),
  )
  artefacts.save_adapter(setting, anchor, state.adapters)
  return setting.finish({
    **{f'dev_{name}': value for name, value in result.items() if name != 'step_seconds'},
    'step_seconds': result.get('step_seconds'),
    **measure_test(state, bootstrap=config.evaluate.bootstrap),
    **_said(setting, anchor, reference, state.adapters),
    **{f'{name}_start': value for name, value in start.items()},
    **_optimum(setting),
    'method': config.preference.method,
    'parameters_trainable': adapters.count(state.adapters),
    'parameters_total': trees.count(anchor.params),
  })


def make_method(setting: settings.Setting) -> Any:
  """config.preference.method, with its own options."""
  section = setting.config.preference
  return methods.find(section.method)(**section.get(section.method, {}))


def make_step(
  setting: settings.Setting, anchor: artefacts.Base, method: Any, tx: Any, places: Tree
) -> Callable:
  """The update ``(state, frozen, batch) -> (state, metrics)``."""
  loss = direct.make_loss(anchor.model, method, **_lengths(setting))
  return steps.make_train_step(
    loss, tx, split=adapters.split, shardings=places,
    microbatches=setting.config.preference.microbatches,
  )


def examples(setting: settings.Setting, method: Any, split: str) -> list[Example]:
  """Pairs, or thumbs for a method that wants them: both sides of pairs where there are none."""
  try:
    return setting.examples(split, method.examples)
  except ValueError as lacking:
    if method.examples != 'labelled':
      raise
    try:
      pairs = setting.examples(split, 'preference')
    except ValueError:
      raise lacking from None  # what is wrong with the thumbs, not with pairs that nobody has
  return [
    Labelled(pair.prompt, said, label, pair.group, pair.meta)
    for pair in pairs for said, label in ((pair.chosen, 1.0), (pair.rejected, 0.0))]


def new_adapter(setting: settings.Setting, anchor: artefacts.Base) -> Tree:
  """The policy before its first update."""
  return artefacts.new_adapter(
    setting, anchor, setting.key, start=setting.config.preference.adapter)


def _lengths(setting: settings.Setting) -> dict[str, int]:
  c = setting.config.data
  return {'longest': c.max_prompt_tokens + c.max_response_tokens,
          'longest_response': c.max_response_tokens}


def _batches(setting: settings.Setting, method, rows: list[dict]) -> list[Batch]:
  shared = setting.config.preference.share_prompt
  return setting.evaluation_batches(rows, method.examples, shared_prompt=shared)


def _attach(
  setting: settings.Setting, anchor: artefacts.Base, method, frozen: Frozen, rows: list[dict],
  count: int,
) -> Attach:
  """Batch -> the batch with its reference log-probs, if they are to be computed once for all rows.

  `count` is how many examples the rows are of; those without a row have NaN.
  """
  if not method.reference or setting.config.preference.reference != 'precomputed':
    return lambda batch: batch
  read = jax.jit(lambda frozen, batch: direct.reference_logprobs(anchor.model, frozen, batch))
  parts = (
    (np.asarray(read(frozen, setting.place(batch))), batch['index'], batch['weight'])
    for batch in _batches(setting, method, rows))
  table = probe.gather(parts, count)
  return lambda batch: batch | {'reference': table[batch['index']]}


def _make_evaluation(
  setting: settings.Setting, anchor: artefacts.Base, method, frozen: Frozen,
  found: list[Example],
):
  """State -> loss and metrics over the examples, and how well implicit rewards tell them apart."""
  rows = setting.rows(found, method.examples)
  attach = _attach(setting, anchor, method, frozen, rows, len(found))
  batches = [setting.place(attach(batch)) for batch in _batches(setting, method, rows)]
  judge = jax.jit(direct.make_judge(anchor.model, method, **_lengths(setting)))

  def evaluate(state: steps.TrainState, bootstrap: int = 0) -> dict[str, float]:
    judged = [judge(state.adapters, frozen, batch) for batch in batches]
    total, *more = [{'loss': j.loss, **j.metrics} for j in judged]
    for means in more:
      total = {name: total[name] + mean for name, mean in means.items()}
    parts = ((np.asarray(j.rewards), np.asarray(b['index']), np.asarray(b['weight']))
             for j, b in zip(judged, batches))
    report = _report(setting, found, probe.gather(parts, len(found)), bootstrap)
    return report | {name: float(mean.value()) for name, mean in total.items()}

  return evaluate


def _report(
  setting: settings.Setting, found: list[Example], rewards: np.ndarray, bootstrap: int
) -> dict:
  """AUC, and the accuracy of pairs, of implicit rewards f32[N, n]; NaN rows have none."""
  keep = np.isfinite(rewards).all(-1)
  kept, rewards = [e for e, k in zip(found, keep) if k], rewards[keep]
  groups = [e.group for e in kept]
  options = dict(bootstrap=bootstrap, seed=setting.config.seed)
  if rewards.shape[1] == 2:
    report = classification.preference_report(rewards[:, 0], rewards[:, 1], groups, **options)
  else:
    labels = np.array([e.label for e in kept])
    report = classification.labelled_report(rewards[:, 0], labels, groups, **options)
  wanted = ('auc', 'pair_accuracy') if bootstrap else ('auc',)
  return {name: value for name, value in report.items() if name.startswith(wanted)}


def _said(
  setting: settings.Setting, anchor: artefacts.Base, reference: Tree, policy: Tree
) -> dict[str, float]:
  """Of a sample for each test prompt: KL to the anchor, length, and the gold reward."""
  prompts = responses.examples(setting, 'test')
  if not prompts:
    return {}
  found = responses.respond(
    setting, anchor, policy, prompts, jax.random.fold_in(setting.key, 1),
    frozen={'reference': reference})
  values = {
    'kl': float(found.kl.mean()),
    'response_tokens': float(np.mean([len(tokens) for tokens in found.tokens])),
    'finished': float(found.finished.mean()),
  }
  gold = responses.gold_rewards(setting, prompts, found.texts)
  return values if gold is None else values | {'gold_reward': float(gold.mean())}


def _optimum(setting: settings.Setting) -> dict[str, float]:
  optimum = getattr(setting.dataset, 'OPTIMUM', None)
  return {} if optimum is None else {'gold_optimum': float(optimum)}
