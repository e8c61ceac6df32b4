"""What algorithms and regularizers share: RL at equal budgets of samples, rewards against KL.

<workdir>/base/{tokenizer,pretrain,sft,reward}   of all rows: one anchor, one reward model
<workdir>/seed<k>/<row>/rl                       a row of one seed

So intervals over seeds are of RL alone. An update's number of responses and the number of updates
are the config's, the same for all rows; how many prompts they answer, and what is made of them, is
the row's.
"""

import argparse
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments import charts
from experiments.charts import SMALL, SOFT, TEXT
from experiments.studies import _finished as finished
from experiments.studies import _jobs as jobs
from experiments.studies._estimates import (
  Estimate,
  by_seed,
  difference,
  estimate,
  over_seeds,
  show,
  surely,
)
from experiments.studies._jobs import SHARED, Job, Row, Spec
from perl import choices
from perl import jobs as pipeline
from perl.config import runs

Results = Mapping[str, Any]
"""{'rows': [{'name', 'seed', 'rl': its summary, 'curve': dev evaluations}], 'base': what the reward
model is worth, 'batch_size': responses of an update, 'optimum': of the gold reward, facts}."""

STAGES = (*SHARED, 'reward')
FIGURES = (('gold_reward', 'gold reward', 3), ('reward', 'reward', 3), ('kl', 'KL, nats', 2),
           ('response_tokens', 'length', 1), ('finished', 'ends in EOS', 3))
"""Of the test prompts, after RL."""
NEAR = 0.9  # of the optimum
CURVE = ('reward', 'gold_reward', 'kl', 'response_tokens')
LINES = ('-', '--', ':', '-.')


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Which rows, which seeds."""
  parser.add_argument('--only', default='all', help='some rows, with commas')
  jobs.add_seeds(parser)


def wanted(rows: Sequence[Row], options: argparse.Namespace) -> list[Row]:
  """Those of the rows that --only names."""
  known = {row.name: row for row in rows}
  return [known[name] for name in jobs.chosen(options.only, list(known), '--only')]


def study(rows: Callable[[], Sequence[Row]]) -> tuple[Callable, Callable]:
  """`phases` and `collect` of a study that compares these rows."""
  return (lambda spec, options: phases(spec, rows(), options),
          lambda spec, options: collect(spec, rows(), options))


def phases(spec: Spec, rows: Sequence[Row], options: argparse.Namespace) -> list[list[Job]]:
  """Anchor and reward model, then the RL of every row and seed."""
  base = {pipeline.STAGES[stage].makes: f'base/{stage}' for stage in STAGES}
  return [
    [spec.shared(spec.config(), STAGES, 'base')],
    [Job(spec.reads(spec.row(row, seed), **base), ('rl',), _folder(spec, row.name, seed))
     for seed in jobs.seeds_of(options) for row in wanted(rows, options)]]


def _folder(spec: Spec, name: str, seed: int) -> pathlib.Path:
  return spec.workdir / f'seed{seed}' / Row(name).folder


def collect(spec: Spec, rows: Sequence[Row], options: argparse.Namespace) -> dict[str, Any]:
  """Those of the rows and seeds that are finished: `Results`."""
  records = []
  for row in wanted(rows, options):
    for seed in jobs.seeds_of(options):
      stage = _folder(spec, row.name, seed) / 'rl'
      if summary := runs.summary(stage):
        records.append({'name': row.name, 'seed': seed, 'rl': summary, 'curve': curve(stage)})
  facts, reward = finished.facts(records), runs.summary(spec.workdir / 'base' / 'reward')
  return {**facts, 'base': {k: reward[k] for k in ('pair_accuracy', 'auc') if k in reward},
          **setting(spec.workdir), 'rows': [finished.slim(row, facts) for row in records]}


def setting(workdir: pathlib.Path) -> dict[str, float]:
  """The responses of an update and the gold optimum, which all rows have in common."""
  for _, folder in finished.folders(workdir):
    if config := runs.config(folder):
      best = getattr(choices.find('perl.data.sets', config['data']['name']), 'OPTIMUM', None)
      return {'batch_size': config['rl']['batch_size']} | (
        {} if best is None else {'optimum': float(best)})
  return {}


def curve(stage: pathlib.Path) -> list[dict[str, float]]:
  """The dev evaluations: [{'step', 'reward', 'kl', ...}]."""
  return [
    {'step': row['step']} | {name: row[f'dev/{name}'] for name in CURVE if f'dev/{name}' in row}
    for row in runs.read_metrics(stage) if 'dev/reward' in row]


def responses_to_optimum(results: Results, name: str) -> str:
  """How many until the dev gold reward is NEAR the optimum, the most of all seeds; '–': not in all.

  Known to the steps of evaluation alone.
  """
  if 'optimum' not in results:
    return '–'
  reached = [next((point['step'] for point in row['curve']
                   if point['gold_reward'] >= NEAR * results['optimum']), None)
             for row in results['rows'] if row['name'] == name]
  return '–' if None in reached else f'{max(reached) * results["batch_size"]:,}'


def change(results: Results, name: str, figure: str, beside: str) -> Estimate | None:
  """The difference to another row's figure, by seed."""
  return difference(*(by_seed(results['rows'], 'rl', figure, name=n) for n in (name, beside)))


def names(results: Results) -> list[str]:
  """Rows by their first figure that is known, the largest first."""
  rows, chief = results['rows'], chief_figure(results)
  known = list(dict.fromkeys(row['name'] for row in rows))
  return sorted(known, key=lambda name: -over_seeds(rows, 'rl', chief, name=name).mean)


def chief_figure(results: Results) -> str:
  """What rows are ordered by: the gold reward where there is one."""
  return 'gold_reward' if by_seed(results['rows'], 'rl', 'gold_reward') else 'reward'


def lines(results: Results) -> tuple[list[str], list[list[str]]]:
  """(head, lines) of the table: means over seeds ± half the t-interval; the anchor first."""
  rows, order = results['rows'], names(results)
  columns = [['', 'before RL', *order]]
  for figure, title, digits in FIGURES:
    if by_seed(rows, 'rl', figure):
      columns.append([title, show(estimate([rows[0]['rl'].get(f'{figure}_start')]), digits),
                      *(show(over_seeds(rows, 'rl', figure, name=name), digits)
                        for name in order)])
  near = [responses_to_optimum(results, name) for name in order]
  if any(value != '–' for value in near):
    columns.append([f'responses to {NEAR:.0%} of the optimum', '', *near])
  head, *body = map(list, zip(*columns))
  return head, body


def notes(results: Results, beside: str) -> list[str]:
  """What surely differs from the row `beside`, and what the intervals are."""
  chief, known = chief_figure(results), names(results)
  seeds = sorted({row['seed'] for row in results['rows']})
  sentences = []
  if beside in known and len(seeds) > 1:
    signs = surely({n: change(results, n, chief, beside) for n in known if n != beside})
    sentences += [f'Surely {word} {beside} in {chief.replace("_", " ")}, by differences of the '
                  f'same seed: {", ".join(signs[sign]) or "none"}.'
                  for word, sign in (('above', 'rises'), ('below', 'falls'))]
  over = (f'mean over seeds {", ".join(map(str, seeds))} ± half the 95 % t-interval'
          if len(seeds) > 1 else f'seed {seeds[0]} alone')
  return [*sentences, f'Test prompts; {over}; one anchor '
                  f'{"and one reward model " if results["base"] else ""}for all.']


def plot(results: Results, file: str) -> None:
  """Gold reward (where there is one) and reward against sqrt KL, means over seeds by evaluation."""
  panels = [figure for figure in ('gold_reward', 'reward')
            if any(figure in point for row in results['rows'] for point in row['curve'])]
  figure, axes = charts.new(4.6 * len(panels) + 2.2, 4.6, len(panels), shared=False)
  for axis, panel in zip(axes, panels):
    for i, name in enumerate(names(results)):
      axis.plot(*zip(*mean_path(results, name, panel)), LINES[i // 10 % len(LINES)],
                color=f'C{i % 10}', marker='o', markersize=2.5, linewidth=1.1, label=name)
    axis.set_title(f'{panel.replace("_", " ")}, dev', fontsize=TEXT, color=SOFT)
    axis.set_xlabel('√KL to the anchor, √nats', fontsize=SMALL)
  axes[-1].legend(frameon=False, fontsize=SMALL - 1, loc='center left', bbox_to_anchor=(1.0, 0.5))
  charts.save(figure, file)


def mean_path(results: Results, name: str, figure: str) -> list[tuple[float, float]]:
  """(sqrt of the mean KL, the mean figure) over seeds, at each evaluated step."""
  points: dict[int, list[tuple[float, float]]] = {}
  for row in results['rows']:
    if row['name'] == name:
      for point in row['curve']:
        points.setdefault(point['step'], []).append((point['kl'], point[figure]))
  mean = lambda values: math.fsum(values) / len(values)
  # A sampled KL may fall below 0 by chance.
  return [(math.sqrt(max(mean([kl for kl, _ in of_step]), 0.0)), mean([y for _, y in of_step]))
          for _, of_step in sorted(points.items())]
