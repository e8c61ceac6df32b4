"""Stage `evaluate`: the policy before (the anchor) and after RL on held-out prompts, with samples.

On the test prompts one response each is sampled at config.rl.temperature and judged by the reward
model, by the KL to the anchor and by the gold reward where there is one. On the test
demonstrations, where the data has some, the likeliest response (greedy) is compared with the
agent's own turn by the dataset's response_metrics (exact match, valid API calls).
"""

import os

import numpy as np
from ml_collections import ConfigDict

from perl.data.examples import Example
from perl.evaluate import generation
from perl.jobs import _artefacts as artefacts
from perl.jobs import _responses as responses
from perl.jobs import _setting as settings
from perl.train import metrics


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves samples.json and responses.json, all that was sampled, in workdir.

  Returns:
    each metric before (`<name>_before`) and after RL.
  """
  setting = settings.begin(config, workdir, 'evaluate')
  anchor = artefacts.load_anchor(setting)
  policy, _ = artefacts.load_adapter(setting, setting.input('policy'), anchor)
  # The policy before its first update: the anchor, or the adapter that rl started from.
  start = artefacts.new_adapter(setting, anchor, setting.key, start=config.rl.adapter)
  reference = artefacts.reference(setting, anchor, start)
  frozen = {'reference': reference, **responses.judges(setting, anchor)}
  prompts = responses.examples(setting, 'test')
  turns = responses.examples(setting, 'test', 'demonstration')
  result, greedy, answers = {}, {}, {}
  for when, adapter in (('_before', reference), ('', policy)):
    sampled = responses.respond(setting, anchor, adapter, prompts, setting.key, frozen=frozen)
    answers[when] = sampled.texts
    judged = _judged(setting, prompts, sampled)
    result |= _summary(setting, prompts, sampled, judged, when)
    if turns:
      greedy[when] = responses.respond(
        setting, anchor, adapter, turns, setting.key, temperature=0.0, frozen=frozen
      )
      compared = responses.compared(setting, turns, greedy[when])
      compared = {name: values for name, values in compared.items() if name not in judged}
      summary = _summary(setting, turns, greedy[when], compared, when)
      result |= {k: v for k, v in summary.items() if k.startswith(tuple(compared))}
    else:
      greedy[when] = sampled
  metrics.write_json(os.path.join(workdir, 'responses.json'), [
    {'prompt': e.prompt, 'group': e.group, 'before': before, 'after': after}
    for e, before, after in zip(prompts, answers['_before'], answers[''])])
  samples = _samples(setting, turns or prompts, greedy['_before'], greedy[''])
  metrics.write_json(os.path.join(workdir, 'samples.json'), samples)
  if hasattr(setting.dataset, 'OPTIMUM'):
    result['gold_optimum'] = float(setting.dataset.OPTIMUM)
  with metrics.Writer(workdir, resumed_step=-1) as writer:
    writer.write(0, result, prefix='test')
  return setting.finish(result)


def _judged(
  setting: settings.Setting, examples: list[Example], found: responses.Responses
) -> dict[str, np.ndarray]:
  """By response: the reward model's score, the KL estimate and the gold reward."""
  gold = responses.gold_rewards(setting, examples, found.texts)
  values = {'reward': found.scores, 'kl': found.kl}
  return values if gold is None else values | {'gold_reward': gold}


def _summary(setting, examples, found, values: dict[str, np.ndarray], suffix: str) -> dict:
  summary = generation.summarize(
    found.tokens, found.finished, values, [e.group for e in examples],
    bootstrap=setting.config.evaluate.bootstrap, seed=setting.config.seed,
  )
  return {f'{name}{suffix}': value for name, value in summary.items()}


def _samples(setting: settings.Setting, examples, before, after) -> list[dict]:
  """Dialogues from the largest loss of reward to the largest gain, with both responses."""
  chosen = generation.spread(before.scores, after.scores, setting.config.evaluate.samples)
  gold = [responses.gold_rewards(setting, examples, f.texts) for f in (before, after)]
  return [
    {
      'prompt': examples[i].prompt,
      'reference': getattr(examples[i], 'response', None),
      'before': before.texts[i],
      'after': after.texts[i],
      'gold_before': None if gold[0] is None else float(gold[0][i]),
      'gold_after': None if gold[1] is None else float(gold[1][i]),
      'reward_before': float(before.scores[i]),
      'reward_after': float(after.scores[i]),
    }
    for i in chosen
  ]
