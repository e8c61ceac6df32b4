r"""Two versions of the code on the same experiments, paired by experiment and seed.

    git worktree add /tmp/before 2d68cc3
    (cd /tmp/before && python -m perl.cli launch --config=configs/demo.py:seed=0 \
        --workdir=/tmp/pairs/before/demo0)
    python -m perl.cli launch --config=configs/demo.py:seed=0 --workdir=/tmp/pairs/after/demo0
    python -m experiments.studies versions --before=/tmp/pairs/before --after=/tmp/pairs/after \
        --json=experiments/results/versions.json

Both folders hold finished workdirs of the same names, an experiment and a seed each: demo0, demo1,
coffee0. What one version alone has is left out. A change of a version is no better or worse for
sure unless the t-interval over seeds leaves 0 out.
"""

import argparse
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from experiments.studies import _finished as finished
from experiments.studies._engine import Table
from experiments.studies._estimates import difference, show, sign
from experiments.studies._jobs import Spec
from perl import paths
from perl.config.fields import ConfigError

NEEDS = ('before', 'after')
NAME = re.compile(r'(.+?)(\d+)')
STAGES = ('reward', 'rl', 'evaluate')
FIGURES = {
  'gold_reward': ('evaluate', 'gold_reward', 3), 'gold reward of SFT': (
    'evaluate', 'gold_reward_before', 3),
  'right answers, greedy': ('evaluate', 'correct', 3),
  'exact match, greedy': ('evaluate', 'exact_match', 3),
  'reward': ('evaluate', 'reward', 3), 'reward of SFT': ('evaluate', 'reward_before', 3),
  'KL': ('evaluate', 'kl', 3), 'AUC of the reward model': ('reward', 'auc', 3),
}
"""Title -> (stage, its figure, digits)."""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The two folders."""
  parser.add_argument('--before', default='', help='folder of workdirs of the older version')
  parser.add_argument('--after', default='', help='folder of workdirs of the newer version')


def _workdirs(folder: str) -> dict[tuple[str, int], epath.Path]:
  """{(experiment, seed): a finished workdir}."""
  return {
    (match[1], int(match[2])): path for path in sorted(paths.of(folder).iterdir())
    if (match := NAME.fullmatch(path.name)) and (path / 'summary.json').exists()}


def collect(spec: Spec, options: argparse.Namespace) -> dict[str, Any]:
  """{'rows': one a version, experiment and seed}.

  Raises:
    ConfigError: no experiment and seed that both have finished.
  """
  del spec
  both = {when: _workdirs(getattr(options, when)) for when in NEEDS}
  shared = sorted(both['before'].keys() & both['after'].keys())
  if not shared:
    raise ConfigError(f'expected finished workdirs of the same names in {options.before} and '
                      f'{options.after}, such as demo0, found none')
  return {'rows': [
    {'version': when, 'experiment': name, 'seed': seed,
     **finished.summaries(both[when][name, seed], STAGES)}
    for when in NEEDS for name, seed in shared]}


def _by_seed(results: Mapping[str, Any], version: str, experiment: str, title: str) -> dict:
  stage, field, _ = FIGURES[title]
  return {row['seed']: value for row in results['rows']
          if (row['version'], row['experiment']) == (version, experiment)
          and isinstance(value := row.get(stage, {}).get(field), (int, float))}


def table(results: Mapping[str, Any]) -> Table:
  """A line an experiment and figure: both versions, and their difference."""
  experiments = dict.fromkeys(row['experiment'] for row in results['rows'])
  body = []
  for name, title in ((name, title) for name in experiments for title in FIGURES):
    before, after = (_by_seed(results, when, name, title) for when in NEEDS)
    if (change := difference(after, before)) is None:
      continue
    digits = FIGURES[title][2]
    cells = [' '.join(f'{x:.{digits}f}' for _, x in sorted(values.items()))
             for values in (before, after)]
    body.append([name, title, *cells, show(change, digits, '+'), sign(change)])
  commits = {when: sorted({str(row[stage].get('commit')) for row in results['rows']
                           if row['version'] == when for stage in STAGES if stage in row})
             for when in NEEDS}
  return ['experiment', 'figure', 'before, by seed', 'after, by seed', 'change', ''], body, [
    f'Before is commit {", ".join(commits["before"])}, after {", ".join(commits["after"])}. '
    'Changes are means over seeds, paired, ± half the 95 % t-interval.']
