"""Finished rows as data, and the table of them."""

import pathlib
from collections.abc import Sequence
from typing import Any

from experiments import runs, tables
from experiments.statistics import Estimate, estimate, show

Found = dict[str, Any]
"""{'rows': [{'name', 'seed', 'rl': its summary, 'curve': dev evaluations}], 'base': ..., facts}."""

FIGURES = (('gold_reward', 'gold reward', 3), ('reward', 'reward', 3), ('kl', 'KL, nats', 2),
           ('response_tokens', 'length', 1), ('finished', 'ends in EOS', 3))
"""Of the test prompts, after RL."""

CURVE = ('reward', 'gold_reward', 'kl', 'response_tokens')


def folder(workdir: pathlib.Path, name: str, seed: int) -> pathlib.Path:
  """Where a row's stage lies."""
  return workdir / f'seed{seed}' / name.replace('/', '-')


def collect(workdir: pathlib.Path, names: Sequence[str], seeds: Sequence[int]) -> Found:
  """Those of the rows that are finished."""
  found, summaries = [], []
  for name in names:
    for seed in seeds:
      stage = folder(workdir, name, seed) / 'rl'
      if summary := runs.summary(stage):
        summaries.append(summary)
        found.append({'name': name, 'seed': seed, 'rl': summary, 'curve': curve(stage)})
  facts = tables.common_facts(summaries) if summaries else {}
  slim = lambda s: {k: v for k, v in s.items() if k not in tables.ABOUT or v != facts[k]}
  return {**facts, 'base': base(workdir),
          'rows': [row | {'rl': slim(row['rl'])} for row in found]}


def base(workdir: pathlib.Path) -> dict[str, Any]:
  """What the anchor and the reward model are worth."""
  reward = runs.summary(workdir / 'base' / 'reward')
  return {name: reward[name] for name in ('pair_accuracy', 'auc') if name in reward}


def curve(stage: pathlib.Path) -> list[dict[str, float]]:
  """The dev evaluations: [{'step', 'reward', 'kl', ...}]."""
  return [
    {'step': row['step']} | {name: row[f'dev/{name}'] for name in CURVE if f'dev/{name}' in row}
    for row in runs.read_metrics(stage) if 'dev/reward' in row]


def of(found: Found, name: str, figure: str) -> Estimate | None:
  """A figure of the rows of that name, over seeds."""
  return estimate([row['rl'].get(figure) for row in found['rows'] if row['name'] == name])


def change(found: Found, name: str, figure: str, beside: str) -> Estimate | None:
  """The difference to another row's figure, by seed."""
  values = lambda which: {row['seed']: row['rl'].get(figure) for row in found['rows']
                          if row['name'] == which and row['rl'].get(figure) is not None}
  ours, theirs = values(name), values(beside)
  return estimate([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def names(found: Found) -> list[str]:
  """Rows by their first figure that is known, the largest first."""
  chief = chief_figure(found)
  known = list(dict.fromkeys(row['name'] for row in found['rows']))
  return sorted(known, key=lambda name: -of(found, name, chief).mean)


def chief_figure(found: Found) -> str:
  """What rows are ordered by: the gold reward where there is one."""
  gold = any(row['rl'].get('gold_reward') is not None for row in found['rows'])
  return 'gold_reward' if gold else 'reward'


def table(found: Found) -> tuple[list[str], list[list[str]]]:
  """(head, rows): means over seeds ± half the t-interval; the anchor first."""
  shown = [(figure, title, digits) for figure, title, digits in FIGURES
           if any(row['rl'].get(figure) is not None for row in found['rows'])]
  body = []
  if found['rows']:
    start = found['rows'][0]['rl']
    before = [estimate([start.get(f'{figure}_start')]) for figure, _, _ in shown]
    body.append(['before RL', *(show(x, digits) for x, (*_, digits) in zip(before, shown))])
  for name in names(found):
    body.append([name, *(show(of(found, name, figure), digits) for figure, _, digits in shown)])
  return ['', *(title for _, title, _ in shown)], body


BESIDE = {'algorithms': 'reinforce', 'regularizers': 'lora/kl'}
"""The row that others are compared with."""


def notes(found: Found, study: str) -> list[str]:
  """What surely differs, and what the intervals are."""
  chief, beside, known = chief_figure(found), BESIDE[study], names(found)
  lines = []
  if beside in known:
    differences = {name: change(found, name, chief, beside) for name in known if name != beside}
    for word, sure in (('above', lambda d: d.low > 0), ('below', lambda d: d.high < 0)):
      which = [name for name, d in differences.items() if d and d.n > 1 and sure(d)]
      lines.append(f'Surely {word} {beside} in {chief.replace("_", " ")}, by differences of the '
                   f'same seed: {", ".join(which) or "none"}.')
  seeds = sorted({row['seed'] for row in found['rows']})
  lines.append(f'Test prompts; mean over seeds {", ".join(map(str, seeds))} ± half the 95 % '
               't-interval; one anchor and one reward model for all.')
  return lines
