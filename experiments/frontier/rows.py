"""Finished rows as data, and the table of them."""

import pathlib
from collections.abc import Sequence
from typing import Any

from experiments import tables
from experiments.statistics import Estimate, estimate, show
from perl import choices
from perl.config import runs

Found = dict[str, Any]
"""{'rows': [{'name', 'seed', 'rl': its summary, 'curve': dev evaluations}], 'base': what the reward
model is worth, 'batch_size': responses of an update, 'optimum': of the gold reward, facts}."""

FIGURES = (('gold_reward', 'gold reward', 3), ('reward', 'reward', 3), ('kl', 'KL, nats', 2),
           ('response_tokens', 'length', 1), ('finished', 'ends in EOS', 3))
"""Of the test prompts, after RL."""

NEAR = 0.9  # of the optimum
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
  return {**facts, 'base': base(workdir), **setting(workdir),
          'rows': [row | {'rl': slim(row['rl'])} for row in found]}


def base(workdir: pathlib.Path) -> dict[str, Any]:
  """What the reward model is worth; {} without one."""
  reward = runs.summary(workdir / 'base' / 'reward')
  return {name: reward[name] for name in ('pair_accuracy', 'auc') if name in reward}


def setting(workdir: pathlib.Path) -> dict[str, float]:
  """The responses of an update and the gold optimum, which all rows have in common."""
  for folder_of_row in sorted(workdir.glob('seed*/*')):
    if config := runs.config(folder_of_row):
      best = getattr(choices.find('perl.data.sets', config['data']['name']), 'OPTIMUM', None)
      return {'batch_size': config['rl']['batch_size']} | (
        {} if best is None else {'optimum': float(best)})
  return {}


def curve(stage: pathlib.Path) -> list[dict[str, float]]:
  """The dev evaluations: [{'step', 'reward', 'kl', ...}]."""
  return [
    {'step': row['step']} | {name: row[f'dev/{name}'] for name in CURVE if f'dev/{name}' in row}
    for row in runs.read_metrics(stage) if 'dev/reward' in row]


def of(found: Found, name: str, figure: str) -> Estimate | None:
  """A figure of the rows of that name, over seeds."""
  return estimate([row['rl'].get(figure) for row in found['rows'] if row['name'] == name])


def responses_to_optimum(found: Found, name: str) -> str:
  """How many until the dev gold reward is NEAR the optimum, the most of all seeds; '–': not in all.

  Known to the steps of evaluation alone.
  """
  if 'optimum' not in found:
    return '–'
  reached = []
  for row in found['rows']:
    if row['name'] == name:
      steps = [point['step'] for point in row['curve']
               if point['gold_reward'] >= NEAR * found['optimum']]
      if not steps:
        return '–'
      reached.append(steps[0] * found['batch_size'])
  return f'{max(reached):,}'


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
  order = names(found)
  if not order:
    return [''], []
  before = found['rows'][0]['rl']
  columns = [['', 'before RL', *order]]
  for figure, title, digits in FIGURES:
    if any(row['rl'].get(figure) is not None for row in found['rows']):
      columns.append([title, show(estimate([before.get(f'{figure}_start')]), digits),
                      *(show(of(found, name, figure), digits) for name in order)])
  near = [responses_to_optimum(found, name) for name in order]
  if any(value != '–' for value in near):
    columns.append([f'responses to {NEAR:.0%} of the optimum', '', *near])
  head, *body = map(list, zip(*columns))
  return head, body


BESIDE = {'algorithms': 'reinforce', 'regularizers': 'lora/kl'}
"""The row that others are compared with."""


def notes(found: Found, study: str) -> list[str]:
  """What surely differs, and what the intervals are."""
  chief, beside, known = chief_figure(found), BESIDE[study], names(found)
  seeds = sorted({row['seed'] for row in found['rows']})
  lines = []
  if beside in known and len(seeds) > 1:
    differences = {name: change(found, name, chief, beside) for name in known if name != beside}
    for word, sure in (('above', lambda d: d.low > 0), ('below', lambda d: d.high < 0)):
      which = [name for name, d in differences.items() if d and d.n > 1 and sure(d)]
      lines.append(f'Surely {word} {beside} in {chief.replace("_", " ")}, by differences of the '
                   f'same seed: {", ".join(which) or "none"}.')
  over = (f'mean over seeds {", ".join(map(str, seeds))} ± half the 95 % t-interval'
          if len(seeds) > 1 else f'seed {seeds[0]} alone' if seeds else 'nothing is finished')
  lines.append(f'Test prompts; {over}; one anchor '
               f'{"and one reward model " if found["base"] else ""}for all.')
  return lines
