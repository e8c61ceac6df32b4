"""Cross-validates reward models over groups: the AUC of each fold, beside a bag of words.

    python -m experiments.crossvalidate --config=configs/ticketing.py:size=tiny \
        --workdir=runs/ticketing_folds --peft=lora,full
    python -m experiments.crossvalidate --config=configs/coffee.py:size=tiny \
        --workdir=runs/coffee_folds --peft=lora,full \
        --config.inputs.tokenizer=runs/coffee/tokenizer \
        --config.inputs.base=runs/coffee/pretrain --config.inputs.anchor=runs/coffee/sft

<workdir>/fold<k>/{tokenizer,pretrain,sft}   learnt without the fold's groups
<workdir>/fold<k>/<peft>/reward              trained on the other folds, tested on this one

Inputs that are named on the command line are shared by all folds: right where they were made
without any judged group, as the coffee base is; anything else leaks. Finished stages are skipped.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import statistics, sweep, tables
from perl.cli import launch
from perl.config import command_line, platform, runs
from perl.report import formats

BASE_STAGES = {'tokenizer': 'tokenizer', 'pretrain': 'base', 'sft': 'anchor'}
"""Stage -> the input that takes its place."""

AUC = {'auc': 'reward model', 'probe_auc': 'frozen model and a logistic regression',
       'baseline_auc': 'bag of words, the same rows'}


class Folds:
  """The runs of a cross-validation, as configs and folders."""

  def __init__(self, spec: str, overrides: Sequence[str], workdir: str, *, folds: int) -> None:
    self.rows = sweep.Sweep(spec, overrides, workdir, reward_from='')
    self.workdir, self.folds = pathlib.Path(workdir), folds

  def config(self, peft: str, fold: int) -> ConfigDict:
    """What makes base, anchor and reward model of a fold; its inputs are the fold's own."""
    config = self.rows.config(peft=peft)
    config.data.update(folds=self.folds, fold=fold)
    return config

  def base(self, fold: int) -> ConfigDict:
    """Tokenizer, pretraining and SFT of a fold, whatever the reward model's method."""
    return self.config(sweep.ANCHOR_METHOD, fold)

  def row(self, peft: str, fold: int) -> ConfigDict:
    """The reward model of a method and fold."""
    config = self.config(peft, fold)
    for stage, name in BASE_STAGES.items():
      if stage in config.stages and not config.inputs[name]:
        config.inputs[name] = str(self.workdir / f'fold{fold}' / stage)
    return config


def run(spec: Folds, methods: Sequence[str]) -> None:
  """Runs all that is not finished yet; every config is checked before the first stage starts."""
  configs = {
    fold: (launch.check(spec.base(fold)), [launch.check(spec.row(m, fold)) for m in methods])
    for fold in range(spec.folds)
  }
  for fold, (base, rows) in configs.items():
    folder = spec.workdir / f'fold{fold}'
    own = [s for s, name in BASE_STAGES.items() if not base.inputs[name] and s in base.stages]
    if own:
      launch.run_stages(base, own, folder)
    for peft, row in zip(methods, rows):
      launch.run_stages(row, ('reward',), folder / peft)


def collect(workdir: str, methods: Sequence[str]) -> list[dict[str, Any]]:
  """One row a fold and method that is finished: {'fold', 'peft', 'reward': its summary}."""
  found = []
  for peft in methods:
    for folder in sorted(pathlib.Path(workdir).glob('fold*')):
      summary = runs.summary(folder / peft / 'reward')
      if summary:
        found.append({'fold': int(folder.name.removeprefix('fold')), 'peft': peft,
                      'reward': summary})
  return found


def bag_of_words(config: ConfigDict, folds: int) -> list[float]:
  """AUC of a bag of words on each fold, trained on all rows outside of it.

  A reward model, and the bag of words in its summary, lack the tenth of these that makes its dev
  split.
  """
  from perl.evaluate import baseline  # jax must follow platform.tune
  from perl.jobs import _folds as grouped
  from perl.jobs import _setting as setting

  load = setting.Setting(config, '', 'reward').examples
  return baseline.cross_validate(grouped.everything(load, 'labelled'), folds)


def render(
  rows: Sequence[dict[str, Any]], fmt: str = 'markdown', words: Sequence[float] = ()
) -> str:
  """A row a method: mean AUC over the folds, each fold's, and the gain over the bag of words.

  Args:
    rows: of `collect`.
    fmt: 'markdown', 'csv' or 'latex'.
    words: of `bag_of_words`.
  """
  head, body = ['', 'mean AUC', 'folds', 'gain over the bag of words of the same rows'], []
  methods = list(dict.fromkeys(row['peft'] for row in rows))
  for peft in methods:
    mine = [row['reward'] for row in rows if row['peft'] == peft]
    for name, title in AUC.items():
      values = [s[name] for s in mine if name in s]
      shared = name != 'auc'  # of every method alike
      if not values or (shared and peft != methods[-1]):
        continue
      gain = statistics.estimate([s[name] - s['baseline_auc'] for s in mine if name in s])
      body.append([
        title if shared else f'{title}, {peft}', f'{sum(values) / len(values):.3f}',
        ' '.join(f'{v:.3f}' for v in values),
        '' if name == 'baseline_auc' else f'{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]',
      ])
  if words:
    body.append(['bag of words, dev rows too', f'{sum(words) / len(words):.3f}',
                 ' '.join(f'{v:.3f}' for v in words), ''])
  return formats.FORMATS[fmt](head, body, ['Intervals are t-intervals over the folds, which share '
                                           'training rows: read them as a rough guide.'])


def results(
  rows: Sequence[dict[str, Any]], workdir: str, words: Sequence[float] = ()
) -> dict[str, Any]:
  """What is committed: the rows, what they share, and the means; arguments as of `render`."""
  means = {
    peft: {name: sum(v) / len(v) for name in AUC
           if (v := [r['reward'][name] for r in rows if r['peft'] == peft and name in r['reward']])}
    for peft in dict.fromkeys(row['peft'] for row in rows)
  }
  found = tables.results(rows, workdir, unit='fold')
  return {'mean_over_folds': means, 'bag_of_words': list(words), **found}


def main(argv: Sequence[str] | None = None) -> int:
  """The program; returns the exit code, as launch.main does."""
  return launch.guarded(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
  made = command_line.parser('crossvalidate', 'Cross-validates reward models over groups.')
  made.add_argument('--peft', default='lora,full', help='methods to compare')
  made.add_argument('--folds', default=5, type=int, help='folds')
  made.add_argument('--json', default='', help='also write the rows and their means to this file')
  options, overrides = command_line.parse(made, argv)
  if options.help_fields:
    print(command_line.help_fields(command_line.read(options.config, overrides)))
    return
  methods = sweep.methods_of(options.peft)
  run(Folds(options.config, overrides, options.workdir, folds=options.folds), methods)
  rows = collect(options.workdir, methods)
  words = bag_of_words(command_line.read(options.config, overrides), options.folds)
  print(render(rows, words=words))
  if options.json:
    tables.save(options.json, results(rows, options.workdir, words))


if __name__ == '__main__':
  platform.tune()
  command_line.show_logs()
  sys.exit(main())
