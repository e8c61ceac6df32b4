"""Stage `best_of_n`: what optimising against the reward model by choice alone would give.

Samples of the anchor are judged by the reward model and, where there is one, by the gold reward;
best-of-n picks by the first, and the second tells what it is worth. Reward models of other runs, of
other sizes even, judge the same samples by their text (`best_of_n.sampled`).
"""

import os

import jax
import numpy as np
from ml_collections import ConfigDict

from perl import paths
from perl.data.examples import Example
from perl.evaluate import best_of_n
from perl.jobs import _responses as responses
from perl.jobs import _run as runs
from perl.jobs import _scoring as scoring
from perl.jobs._artefacts import Artefacts, Base
from perl.jobs._data import Data
from perl.train import metrics

TOGETHER = 8
"""Samples of a prompt that decode at a time, on one pass of it through the model."""


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves samples.json and scores.json in workdir, and a line of metrics.jsonl for each n.

  Returns:
    `reward` and `gold_reward` of the policy (n = 1, `_start`) and of the best of all samples.

  Raises:
    ValueError: the samples of `best_of_n.sampled` are those of other prompts.
  """
  run = runs.begin(config, workdir, 'best_of_n')
  artefacts = Artefacts(run)
  data, anchor = artefacts.data, artefacts.anchor()
  prompts = data.answered('dev')
  texts = _sampled(config.best_of_n.sampled, prompts) or _sample(artefacts, anchor, prompts)
  rewards = responses.rewards(run, data, anchor, responses.judges(artefacts, anchor))
  scorer = scoring.Scorer(run, data, anchor)
  values = {'reward': np.array(_by_text(
    prompts, texts, lambda *which: scorer.of_texts(rewards, *which)))}
  if hasattr(data.dataset, 'gold_reward'):
    values['gold_reward'] = np.array(_by_text(prompts, texts, data.gold_rewards))
  metrics.write_json(os.path.join(workdir, 'samples.json'), [
    {'prompt': e.prompt, 'group': e.group, 'texts': row} for e, row in zip(prompts, texts)])
  metrics.write_json(os.path.join(workdir, 'scores.json'), {
    name: scores.tolist() for name, scores in values.items()})
  lines = curve(values)
  with metrics.Writer(workdir, resumed_step=-1) as writer:
    for line in lines:
      writer.write(line['n'], {k: v for k, v in line.items() if k != 'n'}, prefix='dev')
  first, last = lines[0], lines[-1]
  return run.finish({
    **{f'{name}_start': first[name] for name in values}, **last,
    'distinct_texts': float(np.mean([len(set(row)) for row in texts])),
    'prompts': len(prompts), 'samples': len(texts[0]),
  })


def needs(data: Data) -> list[tuple[str, str]]:
  """(kind, split) of the examples that the stage reads."""
  del data
  return [('prompt', 'dev')]


def curve(values: dict[str, np.ndarray]) -> list[dict[str, float]]:
  """[{'n', 'kl', name: its mean of best-of-n, ...}], n = 1, 2, 4, ... and all samples.

  Args:
    values: {'reward': f[N, m], what chooses; name: f[N, m], ...}.
  """
  m = values['reward'].shape[1]
  numbers = sorted({*(2 ** i for i in range(m.bit_length())), m})
  return [
    {'n': n, 'kl': best_of_n.kl(n)} | {
      name: float(best_of_n.expected(values['reward'], scores, n).mean())
      for name, scores in values.items()}
    for n in numbers if n <= m]


def _sample(artefacts: Artefacts, anchor: Base, prompts: list[Example]) -> list[list[str]]:
  """`best_of_n.samples` texts of the anchor for each prompt."""
  run, wanted = artefacts.run, artefacts.run.config.best_of_n.samples
  policy = artefacts.reference(anchor, artefacts.new_adapter(anchor, run.key))
  texts: list[list[str]] = [[] for _ in prompts]
  for number in range(0, wanted, TOGETHER):
    count = min(TOGETHER, wanted - number)
    drawn = responses.respond(
      run, artefacts.data, anchor, policy, prompts, jax.random.fold_in(run.key, number),
      samples=count)
    for i, row in enumerate(texts):
      row.extend(drawn.texts[i * count:(i + 1) * count])
  return texts


def _sampled(folder: str, prompts: list[Example]) -> list[list[str]]:
  """The texts that a finished best_of_n stage has drawn; [] where no folder is named."""
  if not folder:
    return []
  rows = paths.read_json(paths.of(folder) / 'samples.json')
  if [row['prompt'] for row in rows] != [e.prompt for e in prompts]:
    raise ValueError(
      f'expected samples to the {len(prompts)} prompts of this config in {folder}, found '
      f'{len(rows)} prompts that are not the same; use one dataset and one evaluate.max_examples')
  return [row['texts'] for row in rows]


def _by_text(prompts: list[Example], texts: list[list[str]], score) -> list[list[float]]:
  """score(prompts, texts) of every text; one that was sampled twice is judged once."""
  once = list(dict.fromkeys((i, text) for i, row in enumerate(texts) for text in row))
  judged = dict(zip(once, score([prompts[i] for i, _ in once], [text for _, text in once])))
  return [[float(judged[i, text]) for text in row] for i, row in enumerate(texts)]
