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
import optax
from ml_collections import ConfigDict

from perl import trees
from perl.data.examples import SPLITS, Example, Labelled
from perl.evaluate import classification, probe
from perl.jobs import _responses as responses
from perl.jobs import _run as runs
from perl.jobs._artefacts import Artefacts, Base
from perl.jobs._data import Data
from perl.jobs._plan import Plan, Stage
from perl.jobs._run import Run
from perl.peft import adapters
from perl.preference import direct, methods
from perl.preference.direct import Frozen
from perl.train import loop
from perl.train import step as steps
from perl.types import Batch, Tree

Attach = Callable[[Batch], Batch]


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves adapter/ (the policy's) in workdir; returns the test metrics before and after."""
  run = runs.begin(config, workdir, 'preference')
  artefacts = Artefacts(run)
  data, anchor, method = artefacts.data, artefacts.anchor(), make_method(run)
  train, dev, test = (examples(data, method, split) for split in ('train', 'dev', 'test'))
  policy = new_adapter(artefacts, anchor)
  reference = artefacts.reference(anchor, policy)
  start = _of_responses(artefacts, anchor, reference, policy)
  tx = run.optimizer()
  state, places = run.first_state(anchor.params, policy, tx)
  step = make_step(run, anchor, method, tx, places)
  frozen = Frozen(anchor.params, reference if method.reference else None)
  judge = _Judge(data, anchor, method, frozen)
  rows = data.rows(train, method.examples)
  attach = judge.attach(rows, len(train))
  measure_dev, measure_test = (judge.measure(data.some(split)) for split in (dev, test))
  stream = data.stream(rows, method.examples)
  run.compile_ahead(step, state, frozen, stream, attach)
  state, result = loop.fit(
    lambda state, batch: step(state, frozen, run.place(attach(batch))),
    state,
    stream,
    evaluate=measure_dev,
    **artefacts.resumed(anchor),
    **run.loop_options(),
  )
  artefacts.save_adapter(anchor, state.adapters)
  return run.finish({
    **runs.training_result(result),
    **measure_test(state, bootstrap=config.evaluate.bootstrap),
    **_of_responses(artefacts, anchor, reference, state.adapters),
    **{f'{name}_start': value for name, value in start.items()},
    **_optimum(data),
    'method': config.preference.method,
    'parameters_trainable': adapters.count(state.adapters),
    'parameters_total': trees.count(anchor.params),
  })


def make_method(run: Run) -> Any:
  """config.preference.method, with its own options."""
  section = run.config.preference
  return methods.find(section.method)(**section.get(section.method, {}))


def make_step(
  run: Run, anchor: Base, method: Any, tx: optax.GradientTransformation, places: Tree
) -> Callable:
  """The update ``(state, frozen, batch) -> (state, metrics)``."""
  loss = direct.make_loss(anchor.model, method, **_lengths(run))
  return steps.make_train_step(
    loss, tx, split=adapters.split, shardings=places,
    microbatches=run.config.preference.microbatches, divisible=not method.drift)


def examples(data: Data, method: Any, split: str) -> list[Example]:
  """Pairs, or thumbs for a method that wants them: both sides of pairs where there are none."""
  if (kind := _kind(data, method)) == method.examples:
    return data.examples(split, kind)
  return [
    Labelled(pair.prompt, response, label, group=pair.group, meta=pair.meta)
    for pair in data.examples(split, kind)
    for response, label in ((pair.chosen, 1.0), (pair.rejected, 0.0))]


def _kind(data: Data, method: Any) -> str:
  """The kind of examples that is read: pairs for thumbs, where the data have no others."""
  pairs = method.examples == 'labelled' and not data.has('labelled') and data.has('preference')
  return 'preference' if pairs else method.examples


def new_adapter(artefacts: Artefacts, anchor: Base) -> Tree:
  """The policy before its first update."""
  run = artefacts.run
  return artefacts.new_adapter(anchor, run.key, start=run.config.preference.adapter)


def _lengths(run: Run) -> dict[str, int]:
  config = run.config.data
  return {'longest': config.max_prompt_tokens + config.max_response_tokens,
          'longest_response': config.max_response_tokens}


class _Judge:
  """What a method says of held-out examples, and of the reference."""

  def __init__(self, data: Data, anchor: Base, method: Any, frozen: Frozen):
    self.data, self.run, self.anchor = data, data.run, anchor
    self.method, self.frozen = method, frozen

  def _batches(self, rows: list[dict]) -> list[Batch]:
    return self.data.evaluation_batches(
      rows, self.method.examples, shared_prompt=self.run.config.preference.share_prompt)

  def attach(self, rows: list[dict], count: int) -> Attach:
    """Batch -> the batch with its reference log-probs, if they are to be computed once for all.

    `count` is how many examples the rows are of; those without a row have NaN.
    """
    if not self.method.reference or self.run.config.preference.reference != 'precomputed':
      return lambda batch: batch
    read = jax.jit(
      lambda frozen, batch: direct.reference_logprobs(self.anchor.model, frozen, batch))
    parts = (
      (np.asarray(read(self.frozen, self.run.place(batch))), batch['index'], batch['weight'])
      for batch in self._batches(rows))
    table = probe.gather(parts, count)
    return lambda batch: batch | {'reference': table[batch['index']]}

  def measure(self, examples: list[Example]) -> Callable:
    """State -> loss and metrics over the examples, and how well rewards tell them apart."""
    rows = self.data.rows(examples, self.method.examples)
    attach = self.attach(rows, len(examples))
    batches = [self.run.place(attach(batch)) for batch in self._batches(rows)]
    judge = jax.jit(direct.make_judge(self.anchor.model, self.method, **_lengths(self.run)))

    def evaluate(state: steps.TrainState, bootstrap: int = 0) -> dict[str, float]:
      judged = [judge(state.adapters, self.frozen, batch) for batch in batches]
      total, *more = [{'loss': j.loss, **j.metrics} for j in judged]
      for means in more:
        total = {name: total[name] + mean for name, mean in means.items()}
      parts = ((np.asarray(j.rewards), np.asarray(b['index']), np.asarray(b['weight']))
               for j, b in zip(judged, batches))
      report = _report(self.run, examples, probe.gather(parts, len(examples)), bootstrap)
      return report | {name: float(mean.value()) for name, mean in total.items()}

    return evaluate


def _report(
  run: Run, examples: list[Example], rewards: np.ndarray, bootstrap: int
) -> dict:
  """AUC, and the accuracy of pairs, of implicit rewards f32[N, n]; NaN rows have none."""
  keep = np.isfinite(rewards).all(-1)
  kept, rewards = [e for e, k in zip(examples, keep) if k], rewards[keep]
  groups = [e.group for e in kept]
  options = dict(bootstrap=bootstrap, seed=run.config.seed)
  if rewards.shape[1] == 2:
    report = classification.preference_report(rewards[:, 0], rewards[:, 1], groups, **options)
  else:
    labels = np.array([e.label for e in kept])
    report = classification.labelled_report(rewards[:, 0], labels, groups, **options)
  wanted = ('auc', 'pair_accuracy') if bootstrap else ('auc',)
  return {name: value for name, value in report.items() if name.startswith(wanted)}


def _of_responses(
  artefacts: Artefacts, anchor: Base, reference: Tree, policy: Tree
) -> dict[str, float]:
  """Of a sample for each test prompt: KL to the anchor, length, and the gold reward."""
  run, data = artefacts.run, artefacts.data
  prompts = data.answered('test')[:run.config.preference.answers]
  if not prompts:
    return {}
  answers = responses.respond(
    run, data, anchor, policy, prompts, jax.random.fold_in(run.key, 1),
    frozen={'reference': reference})
  values = {
    'kl': float(answers.kl.mean()),
    'response_tokens': float(np.mean([len(tokens) for tokens in answers.tokens])),
    'finished': float(answers.finished.mean()),
  }
  gold = data.gold_rewards(prompts, answers.texts)
  return values if gold is None else values | {'gold_reward': float(gold.mean())}


def _optimum(data: Data) -> dict[str, float]:
  optimum = getattr(data.dataset, 'OPTIMUM', None)
  return {} if optimum is None else {'gold_optimum': float(optimum)}


def needs(data: Data) -> list[tuple[str, str]]:
  """(kind, split) of the examples that the stage reads."""
  kind = _kind(data, make_method(data.run))
  return [*((kind, split) for split in SPLITS), *data.offered('prompt', 'test')]


def learns(plan: Plan) -> tuple[Tree, optax.GradientTransformation]:
  """(what learns, by shapes; its optimizer)."""
  return plan.adapter(lambda base: new_adapter(plan.artefacts, base)), plan.run.optimizer()


def programs(plan: Plan) -> Stage:
  """What the stage holds and runs, by shapes."""
  learning, tx = learns(plan)
  state, places = plan.first_state(learning, tx)
  anchor, method, frozen = plan.anchor, make_method(plan.run), {}
  if method.reference:
    frozen['reference'] = plan.adapter(lambda base: plan.artefacts.reference(
      base, new_adapter(plan.artefacts, base)))
  step = make_step(plan.run, anchor, method, tx, places)
  return plan.updating(
    state, step, plan.batch(method.examples), frozen=frozen,
    fixed=Frozen(anchor.params, frozen.get('reference')))
