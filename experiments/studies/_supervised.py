"""What methods, grid and rates share: rows of SFT and reward models over one base.

<workdir>/base/{tokenizer,pretrain}    of all rows
<workdir>/seed<k>/anchor/sft           under the reward models of seed k, by full tuning (methods)
<workdir>/seed<k>/<row>/{sft,reward}   SFT lies over the base, the reward model over the anchor

The three may share a folder, and with it the base.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.studies import _finished as finished
from experiments.studies import _jobs as jobs
from experiments.studies._estimates import Rows, over_seeds
from experiments.studies._jobs import Job, Row, Spec
from perl.config import runs

STAGES = ('sft', 'reward')
ANCHOR = Row('anchor', jobs.ANCHOR_METHOD)
"""Under the reward models of a seed."""
KEPT = ('loss', 'test_', 'auc', 'pair_accuracy', 'probe_auc', 'baseline_auc', 'parameters_',
        'step_seconds', 'wall_seconds', 'seed', 'peft')
"""How the figures begin that are committed."""


def study(
  rows: Callable[[argparse.Namespace], Sequence[Row]], **how: Any
) -> tuple[Callable, Callable]:
  """`phases` and `collect` of a study that compares these rows; `how` as in `phases`."""
  return (lambda spec, options: phases(spec, rows(options), options, **how),
          lambda spec, options: collect(spec, rows(options)))


def phases(
  spec: Spec, rows: Sequence[Row], options: argparse.Namespace, *,
  stages: Sequence[str] = ('sft',), test: bool = True
) -> list[list[Job]]:
  """Base, anchors where there are reward models, then all rows.

  Args:
    spec: what the study began with.
    rows: what is compared.
    options: with --seeds.
    stages: of a row.
    test: measure SFT on the test split.
  """
  numbers = jobs.seeds_of(options)
  wanted = 'reward' in stages and 'reward' in spec.config().stages
  anchor = 'seed{}/anchor/sft' if wanted else ''
  return [
    [spec.shared(spec.config(), ('tokenizer', 'pretrain'), 'base')],
    [spec.shared(config(spec, ANCHOR, seed), ('sft',), f'seed{seed}/{ANCHOR.folder}')
     for seed in numbers if anchor],
    [spec.job(config(spec, row, seed, test=test, anchor=anchor.format(seed)), stages,
              f'seed{seed}/{row.folder}') for seed in numbers for row in rows]]


def config(spec: Spec, row: Row, seed: int, *, test: bool = False, anchor: str = '') -> ConfigDict:
  """The row's config over the tokenizer and base of all, and the anchor of its seed."""
  result = spec.row(row, seed)
  result.sft.test = test
  inputs = dict(tokenizer='base/tokenizer', base='base/pretrain') | (
    {'anchor': anchor} if anchor else {})
  return spec.reads(result, **inputs)


def collect(spec: Spec, rows: Sequence[Row]) -> dict[str, Any]:
  """What is finished of the rows, of any seed: chief figures, and once what all of them share.

  Returns:
    commit, versions, hardware; 'rows': [{'name', 'peft', 'seed', 'times': the row's factor,
    'learning_rate': of its first stage, as it was run, stage: its summary}].
  """
  records = []
  for row in rows:
    for seed, folder in finished.folders(spec.workdir, row.folder):
      if stages := finished.summaries(folder, STAGES):
        first = next(iter(stages))
        saved = runs.recorded(folder / first / 'config.json')
        records.append({
          'name': row.name, 'peft': row.peft, 'seed': seed, 'times': row.factor,
          'learning_rate': saved.get(f'{first}.optim.learning_rate'), **stages})
  keep = lambda s: {k: v for k, v in s.items() if k.startswith(KEPT)}
  return {**finished.facts(records), 'rows': [
    {k: keep(v) if isinstance(v, dict) else v for k, v in row.items()} for row in records]}


def by_loss(rows: Rows) -> list[str]:
  """Names of rows from the least test loss; those without one come last."""
  loss = {name: over_seeds(rows, 'sft', 'test_loss', name=name)
          for name in dict.fromkeys(row['name'] for row in rows)}
  return sorted(loss, key=lambda name: loss[name].mean if loss[name] else float('inf'))
