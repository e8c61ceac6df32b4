"""Stage `evaluate`: the policy before (anchor) and after RL on held-out prompts, with samples.

Responses are judged by the reward model, by the gold reward where there is one, and by the
dataset's own response metrics (exact match, valid API calls); the last are taken on the likeliest
response (greedy), the first two on samples at config.rl.temperature.
"""

import os

import jax
import numpy as np

from perl.data.examples import Example
from perl.evaluate import generation
from perl.jobs import artefacts, responses
from perl.jobs import setting as settings
from perl.peft import adapters
from perl.train import metrics
from perl.types import Tree


def run(config, workdir: str) -> dict:
  """Leaves samples.json in workdir; returns each metric before (`<name>_before`) and after RL."""
  setting = settings.begin(config, workdir, 'evaluate')
  anchor = artefacts.load_anchor(setting)
  policy, _ = artefacts.load_adapter(setting, setting.input('policy'), anchor)
  reward, _ = artefacts.load_adapter(setting, setting.input('reward'), anchor)
  # The anchor is the base itself here; an identity adapter of the policy's method stands for it.
  reference = adapters.init(
    setting.key, anchor.params, config.peft.name, **artefacts.peft_options(setting)
  )
  frozen = {'reference': reference, 'reward': reward}
  examples = responses.examples(setting, 'test')
  before = _judged(setting, anchor, reference, examples, frozen)
  after = _judged(setting, anchor, policy, examples, frozen)
  metrics.write_json(
    os.path.join(workdir, 'samples.json'), _samples(setting, examples, before, after)
  )
  result = _flat(before, '_before') | _flat(after, '')
  if hasattr(setting.dataset, 'OPTIMUM'):
    result['gold_optimum'] = float(setting.dataset.OPTIMUM)
  with metrics.Writer(workdir, resumed_step=-1) as writer:
    numbers = {k: v for k, v in result.items() if isinstance(v, (int, float))}
    writer.write(0, numbers, prefix='test')
  return setting.finish(result)


def _judged(
  setting: settings.Setting, anchor, policy: Tree, examples: list[Example], frozen: dict[str, Tree]
) -> dict:
  """Per-response values and their summary, sampled and greedy."""
  respond = lambda **options: responses.respond(
    setting, anchor, policy, examples, jax.random.fold_in(setting.key, 1), frozen=frozen, **options
  )
  sampled = respond()
  values = {'reward': sampled.scores, 'kl': sampled.kl}
  gold = responses.gold_rewards(setting, examples, sampled.texts)
  if gold is not None:
    values['gold_reward'] = gold
  score = getattr(setting.dataset, 'response_metrics', None)
  if score is not None and responses.reference(examples[0]) is not None:
    greedy = respond(temperature=0.0)
    values |= _columns(
      [score(e.prompt, t, responses.reference(e)) for e, t in zip(examples, greedy.texts)]
    )
  n, seed = setting.config.evaluate.bootstrap, setting.config.seed
  groups = [e.group for e in examples]
  return {'responses': sampled, 'values': values, 'summary': generation.summarize(
    sampled.tokens, sampled.finished, values, groups, bootstrap=n, seed=seed
  )}


def _columns(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
  """A list of metrics by response -> responses by metric; absent ones are NaN."""
  names = {name for row in rows for name in row}
  return {name: np.array([row.get(name, np.nan) for row in rows]) for name in sorted(names)}


def _flat(judged: dict, suffix: str) -> dict:
  return {f'{name}{suffix}': value for name, value in judged['summary'].items()}


def _samples(setting: settings.Setting, examples, before: dict, after: dict) -> list[dict]:
  """Dialogues spread over the test split, with both responses and what each earned."""
  count = min(setting.config.evaluate.samples, len(examples))
  chosen = np.linspace(0, len(examples) - 1, count).astype(int) if count else []
  rows = []
  for i in map(int, chosen):
    row = {'prompt': examples[i].prompt, 'reference': responses.reference(examples[i])}
    for when, judged in (('before', before), ('after', after)):
      row[when] = judged['responses'].texts[i]
      for name in ('gold_reward', 'reward'):
        value = judged['values'].get(name)
        row[f'{name.split("_")[0]}_{when}'] = None if value is None else float(value[i])
    rows.append(row)
  return rows
