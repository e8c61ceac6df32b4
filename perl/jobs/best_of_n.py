"""Stage `best_of_n`: what optimising against the reward model by choice alone would give.

Samples of the anchor are judged by the reward model and, where there is one, by the gold reward;
best-of-n picks by the first, and the second tells what it is worth. Reward models of other runs, of
other sizes even, judge the same samples by their text (`best_of_n.sampled`).
"""

import os
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from perl import documents, paths
from perl.data.examples import Example
from perl.documents import TEXT
from perl.evaluate import best_of_n
from perl.jobs import _responses as responses
from perl.jobs import _run as runs
from perl.jobs import _scoring as scoring
from perl.jobs._artefacts import Artefacts, Base
from perl.jobs._data import Data
from perl.jobs._scoring import Answer
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
  answers = _sampled(config.best_of_n.sampled, prompts, data.tokenizer.digest) or _sample(
    artefacts, anchor, prompts)
  rewards = responses.rewards(run, data, anchor, responses.judges(artefacts, anchor))
  scorer = scoring.Scorer(run, data, anchor)
  values = {'reward': np.array(_once_each(
    prompts, answers, lambda *which: scorer.of_answers(rewards, *which)))}
  if hasattr(data.dataset, 'gold_reward'):
    values['gold_reward'] = np.array(_once_each(
      prompts, answers, lambda examples, which: data.gold_rewards(
        examples, [answer.text for answer in which])))
  judged = np.isfinite(values['reward']).all(-1)
  if not judged.any():
    raise ValueError('expected rules to judge all samples of some prompts, found none of '
                     f'{len(prompts)}; look at rl.rules')
  texts = [[answer.text for answer in row] for row in answers]
  metrics.write_json(os.path.join(workdir, 'samples.json'), [
    {'prompt': e.prompt, 'group': e.group, **_saved(row, data.tokenizer.digest)}
    for e, row in zip(prompts, answers)])
  metrics.write_json(os.path.join(workdir, 'scores.json'), {
    name: scores.tolist() for name, scores in values.items()})
  lines = curve({name: scores[judged] for name, scores in values.items()})
  with metrics.Writer(workdir, resumed_step=-1) as writer:
    for line in lines:
      writer.write(line['n'], {k: v for k, v in line.items() if k != 'n'}, prefix='dev')
  first, last = lines[0], lines[-1]
  return run.finish({
    **{f'{name}_start': first[name] for name in values}, **last,
    'distinct_texts': float(np.mean([len(set(row)) for row in texts])),
    'prompts': int(judged.sum()), 'samples': len(texts[0]),
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


def _sample(artefacts: Artefacts, anchor: Base, prompts: list[Example]) -> list[list[Answer]]:
  """`best_of_n.samples` responses of the anchor to each prompt."""
  run, wanted = artefacts.run, artefacts.run.config.best_of_n.samples
  policy = artefacts.reference(anchor, artefacts.new_adapter(anchor, run.key))
  answers: list[list[Answer]] = [[] for _ in prompts]
  for number in range(0, wanted, TOGETHER):
    count = min(TOGETHER, wanted - number)
    drawn = responses.respond(
      run, artefacts.data, anchor, policy, prompts, jax.random.fold_in(run.key, number),
      samples=count)
    each = [Answer(text, bool(finished), tuple(ids)) for text, finished, ids in zip(
      drawn.texts, drawn.finished, drawn.tokens)]
    for i, row in enumerate(answers):
      row.extend(each[i * count:(i + 1) * count])
  return answers


def _saved(answers: list[Answer], digest: str) -> dict:
  """Answers as JSON; their ids as text, beside the digest of the tokenizer that they are of."""
  saved = {'texts': [a.text for a in answers], 'finished': [a.finished for a in answers]}
  if answers[0].ids is None:
    return saved
  return saved | {'ids': [' '.join(map(str, a.ids)) for a in answers], 'tokenizer': digest}


def _read(row: dict, digest: str) -> list[Answer]:
  """`_saved` answers; with their ids where they are of our tokenizer."""
  ours = row.get('tokenizer') == digest
  ids = [tuple(map(int, ids.split())) for ids in row['ids']] if ours else [None] * len(row['texts'])
  return list(map(Answer, row['texts'], row['finished'], ids))


def _sampled(folder: str, prompts: list[Example], digest: str) -> list[list[Answer]]:
  """The responses that a finished best_of_n stage has drawn; [] where no folder is named."""
  if not folder:
    return []
  rows = paths.read_json(paths.of(folder) / 'samples.json', documents.items(
    documents.record(prompt=TEXT, texts=documents.items(TEXT))))
  if [row['prompt'] for row in rows] != [e.prompt for e in prompts]:
    raise ValueError(
      f'expected samples to the {len(prompts)} prompts of this config in {folder}, found '
      f'{len(rows)} prompts that are not the same; use one dataset and one evaluate.max_examples')
  if not all('finished' in row for row in rows):
    raise ValueError(f'expected samples in {folder} that say which of them are finished, found '
                     'some of an older version; sample again')
  return [_read(row, digest) for row in rows]


def _once_each(
  prompts: list[Example], answers: list[list[Answer]], score: Callable
) -> list[list[float]]:
  """score(prompts, answers) of every answer; one that was sampled twice is judged once."""
  once = list(dict.fromkeys((i, answer) for i, row in enumerate(answers) for answer in row))
  judged = dict(zip(once, score([prompts[i] for i, _ in once], [answer for _, answer in once])))
  return [[float(judged[i, answer]) for answer in row] for i, row in enumerate(answers)]
