"""Stage `evaluate`: the policy before (the anchor) and after RL on held-out prompts, with samples.

On the test prompts one response each is sampled at config.rl.temperature and judged by the reward
model, by the KL to the anchor and by the gold reward where there is one; how much of the gain is
length (perl/evaluate/length.py) is among the results. On the test
demonstrations, where the data has some, the likeliest response (greedy) is compared with the
agent's own turn by the dataset's response_metrics (exact match, valid API calls), and with all
references of a prompt, where the data bring them, by BLEU and ROUGE-L.
"""

import os

import numpy as np
from ml_collections import ConfigDict

from perl.data.examples import Example
from perl.evaluate import generation, length
from perl.jobs import _responses as responses
from perl.jobs import _run as runs
from perl.jobs._artefacts import Artefacts
from perl.jobs._data import Data
from perl.train import metrics


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves samples.json and responses.json, all that was sampled, in workdir.

  Returns:
    each metric before (`<name>_before`) and after RL.
  """
  run = runs.begin(config, workdir, 'evaluate')
  artefacts = Artefacts(run)
  data, anchor = artefacts.data, artefacts.anchor()
  policy, _ = artefacts.adapter(run.input('policy'), anchor)
  # The policy before its first update: the anchor, or the adapter that rl started from.
  start = artefacts.new_adapter(anchor, run.key, start=config.rl.adapter)
  reference = artefacts.reference(anchor, start)
  frozen = {'reference': reference, **responses.judges(artefacts, anchor)}
  respond = lambda adapter, examples, **how: responses.respond(
    run, data, anchor, adapter, examples, run.key, frozen=frozen, **how)
  prompts, turns = data.answered('test'), data.turns('test')
  result, greedy, answers = {}, {}, {}
  for when, adapter in (('_before', reference), ('', policy)):
    sampled = respond(adapter, prompts)
    answers[when] = sampled
    judged = _judged(data, prompts, sampled)
    result |= _summary(data, prompts, sampled, judged, when)
    greedy[when] = respond(adapter, turns, temperature=0.0) if turns else sampled
    if turns:
      compared = responses.compared(data, turns, greedy[when])
      compared = {name: values for name, values in compared.items() if name not in judged}
      summary = _summary(data, turns, greedy[when], compared, when)
      result |= {k: v for k, v in summary.items() if compared and k.startswith(tuple(compared))}
      beside = responses.beside_references(data, turns, greedy[when])
      result |= {f'{name}{when}': value for name, value in beside.items()}
  _keep(workdir, prompts, {'before': answers['_before'], 'after': answers['']})
  result |= _length(data, prompts, answers['_before'], answers[''])
  samples = _samples(data, turns or prompts, greedy['_before'], greedy[''])
  metrics.write_json(os.path.join(workdir, 'samples.json'), samples)
  if hasattr(data.dataset, 'OPTIMUM'):
    result['gold_optimum'] = float(data.dataset.OPTIMUM)
  with metrics.Writer(workdir, resumed_step=-1) as writer:
    writer.write(0, result, prefix='test')
  return run.finish(result)


def _keep(workdir: str, prompts: list[Example], answers: dict[str, responses.Responses]) -> None:
  """Writes responses.json: what was sampled, with its reward and tokens; null: nobody judged."""
  def one(when: str, those: responses.Responses, i: int) -> dict:
    score = float(those.scores[i])
    return {when: those.texts[i], f'finished_{when}': bool(those.finished[i]),
            f'reward_{when}': score if np.isfinite(score) else None,
            f'tokens_{when}': len(those.tokens[i])}

  metrics.write_json(os.path.join(workdir, 'responses.json'), [
    {'prompt': e.prompt, 'group': e.group,
     **{k: v for name, those in answers.items() for k, v in one(name, those, i).items()}}
    for i, e in enumerate(prompts)])


def _length(
  data: Data, prompts: list[Example], before: responses.Responses, after: responses.Responses
) -> dict:
  """How much of the reward gain is length: `length_...` as perl/evaluate/length.py has it."""
  config = data.run.config
  tokens = ([len(row) for row in those.tokens] for those in (before, after))
  report = length.report(
    before.scores, after.scores, *tokens, [e.group for e in prompts],
    bootstrap=config.evaluate.bootstrap, seed=config.seed)
  return {f'length_{name}': value for name, value in report.items() if np.isfinite(value)}


def needs(data: Data) -> list[tuple[str, str]]:
  """(kind, split) of the examples that the stage reads."""
  return [('prompt', 'test'), *data.offered('demonstration', 'test')]


def _judged(
  data: Data, examples: list[Example], answers: responses.Responses
) -> dict[str, np.ndarray]:
  """By response: the reward, the KL estimate and the gold reward."""
  gold = data.gold_rewards(examples, answers.texts)
  values = {'reward': answers.scores, 'kl': answers.kl}
  return values if gold is None else values | {'gold_reward': gold}


def _summary(
  data: Data, examples: list[Example], answers: responses.Responses,
  values: dict[str, np.ndarray], suffix: str,
) -> dict:
  config = data.run.config
  summary = generation.summarize(
    answers.tokens, answers.finished, values, [e.group for e in examples],
    bootstrap=config.evaluate.bootstrap, seed=config.seed)
  return {f'{name}{suffix}': value for name, value in summary.items()}


def _samples(data: Data, examples: list[Example], before, after) -> list[dict]:
  """Dialogues from the largest loss of reward to the largest gain, with both responses."""
  chosen = generation.spread(before.scores, after.scores, data.run.config.evaluate.samples)
  gold = [data.gold_rewards(examples, answers.texts) for answers in (before, after)]
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
    for i in chosen]
