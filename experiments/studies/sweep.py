r"""The paper's comparison: PEFT methods over seeds, LoRA against full tuning.

    python -m experiments.studies sweep --config=configs/coffee.py:size=tiny --workdir=runs/coffee \
        --peft=lora,full --seeds=0,1,2 --bases=own

<workdir>/base/{tokenizer,pretrain}       shared by all rows; with --bases=own the tokenizer alone
<workdir>/seed<k>/pretrain                the base of seed k, with --bases=own
<workdir>/seed<k>/sft                     the anchor of seed k, by full tuning
<workdir>/seed<k>/<peft>/reward           a row's own reward model
<workdir>/seed<k>/<peft>/{rl,evaluate}    both against the reward model of --reward_from

What --config.inputs.{tokenizer,base,anchor}=<folder> name is not made: all rows share it.
Intervals over seeds that share a base, or an anchor, say nothing of how these differ; with
--bases=own bases do.
The table is of all that is finished in the folder, of these seeds and methods or of others.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.studies import _against_full as against_full
from experiments.studies import _finished as finished
from experiments.studies._engine import Table
from experiments.studies._jobs import ANCHOR_METHOD, Job, Row, Spec, add_seeds, seeds_of, words
from perl.config import command_line
from perl.config.fields import ConfigError

STAGES = ('reward', 'rl', 'evaluate')
OWN = ('seed', 'peft.name', 'inputs.reward', 'inputs.policy')
"""Fields that the sweep sets itself."""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Which methods and seeds, and what they share."""
  parser.add_argument('--peft', default='lora,full', help='methods to compare')
  add_seeds(parser)
  parser.add_argument('--bases', default='shared', choices=('shared', 'own'),
                      help='one base for all rows, or one of its own for each seed')
  parser.add_argument('--reward_from', default='lora',
                      help='the method whose reward model serves every rl row of a seed')


def phases(spec: Spec, options: argparse.Namespace) -> list[list[Job]]:
  """What all share; anchors; reward models; RL, which may use that of another method.

  Raises:
    ConfigError: a reward model that no row makes, or an override of what rows set.
  """
  methods, seeds = words(options.peft, '--peft=lora,full'), seeds_of(options)
  if options.reward_from not in methods:
    raise ConfigError(f'expected --reward_from among --peft={",".join(methods)}, found '
                      f'{options.reward_from!r}; its reward model serves every rl row of a seed')
  for text in spec.overrides:
    if command_line.overridden(text) in OWN:
      raise ConfigError(f'expected overrides of fields that all rows share, found {text!r}; '
                        'the sweep sets it: use --peft and --seeds')
  of_all, of_seed = ('tokenizer', 'pretrain'), ('sft',)
  if options.bases == 'own':
    of_all, of_seed = ('tokenizer',), ('pretrain', 'sft')
  rows = {f'seed{seed}/{peft}': row(spec, options, peft, seed)
          for seed in seeds for peft in methods}
  return [
    [spec.shared(spec.config(), of_all, 'base')],
    [spec.shared(anchor(spec, options, seed), of_seed, f'seed{seed}') for seed in seeds],
    [spec.job(config, ('reward',), folder) for folder, config in rows.items()],
    [spec.job(config, ('rl', 'evaluate'), folder) for folder, config in rows.items()]]


def anchor(spec: Spec, options: argparse.Namespace, seed: int) -> ConfigDict:
  """SFT of one seed, whatever the rows' method: the reference is the same for all of them.

  Where a seed has a base of its own, pretraining is in the same folder.
  """
  base = {} if options.bases == 'own' else {'base': 'base/pretrain'}
  config = spec.row(Row('anchor', ANCHOR_METHOD), seed)
  return spec.reads(config, tokenizer='base/tokenizer', **base)


def row(spec: Spec, options: argparse.Namespace, peft: str, seed: int) -> ConfigDict:
  """Reward, RL and evaluation of one method and seed; the reward stage makes its own model."""
  base = f'seed{seed}/pretrain' if options.bases == 'own' else 'base/pretrain'
  config = spec.reads(spec.row(Row(peft, peft), seed), tokenizer='base/tokenizer', base=base,
                      anchor=f'seed{seed}/sft')
  if peft != options.reward_from:
    config.inputs.reward = str(spec.workdir / f'seed{seed}' / options.reward_from / 'reward')
  return config


def collect(spec: Spec, options: argparse.Namespace) -> dict[str, Any]:
  """{'rows': [{'seed', 'peft', stage: its summary}], 'shared_stages', ...}; full tuning first.

  Stages that are not finished are left out of a row, and rows without any out of the list.
  """
  rows = [{'seed': seed, 'peft': folder.name, **stages}
          for seed, folder in finished.folders(spec.workdir)
          if (stages := finished.summaries(folder, STAGES))]
  rows.sort(key=lambda row: (*against_full.order(row['peft']), row['seed']))
  return finished.results(spec.workdir, rows)


def table(results: Mapping[str, Any]) -> Table:
  """A column a method, the paper's figures beside; then the claims that they test."""
  rows = results['rows']
  head, body = against_full.lines(rows)
  seeds = sorted({row['seed'] for row in rows})
  return head, body, [
    *against_full.claims(rows),
    f'Mean over seeds {", ".join(map(str, seeds))} ± half the 95 % t-interval (n - 1 degrees of '
    'freedom); "→" is from before RL to after it.',
    f'The last column is published by {against_full.SOURCE}: other tasks, other models, not ours.']
