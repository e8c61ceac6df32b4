r"""Cross-validates reward models over groups: the AUC of each fold, beside a bag of words.

    python -m experiments.studies crossvalidate --config=configs/ticketing.py:size=tiny \
        --workdir=runs/ticketing_folds --peft=lora,full
    python -m experiments.studies crossvalidate --config=configs/coffee.py:size=tiny \
        --workdir=runs/coffee_folds --peft=lora,full \
        --config.inputs.tokenizer=runs/coffee/tokenizer \
        --config.inputs.base=runs/coffee/pretrain --config.inputs.anchor=runs/coffee/sft

<workdir>/fold<k>/{tokenizer,pretrain,sft}   learnt without the fold's groups
<workdir>/fold<k>/<peft>/reward              trained on the other folds, tested on this one

Inputs that are named on the command line are shared by all folds: right where they were made
without any judged group, as the coffee base is; anything else leaks.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.studies import _finished as finished
from experiments.studies._engine import Table
from experiments.studies._estimates import estimate
from experiments.studies._jobs import ANCHOR_METHOD, SHARED, Job, Spec, words
from perl.evaluate import baseline
from perl.jobs import _folds as grouped
from perl.jobs._data import Data
from perl.jobs._run import Run

AUC = {'auc': 'reward model', 'probe_auc': 'frozen model and a logistic regression',
       'baseline_auc': 'bag of words, the same rows'}


NOTE = ('Intervals are t-intervals over the folds, which share training rows: read them as a rough '
        'guide.')


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Which methods, how many folds."""
  parser.add_argument('--peft', default='lora,full', help='methods to compare')
  parser.add_argument('--folds', default=5, type=int, help='folds')


def phases(spec: Spec, options: argparse.Namespace) -> list[list[Job]]:
  """Base and anchor of every fold, then its reward models."""
  methods, folds = words(options.peft, '--peft=lora,full'), range(options.folds)
  bases = {fold: config(spec, ANCHOR_METHOD, options.folds, fold) for fold in folds}
  return [
    [spec.shared(base, tuple(SHARED), f'fold{fold}') for fold, base in bases.items()],
    [spec.job(row(spec, peft, options.folds, fold), ('reward',), f'fold{fold}/{peft}')
     for fold in folds for peft in methods]]


def config(spec: Spec, peft: str, folds: int, fold: int) -> ConfigDict:
  """What makes base, anchor and reward model of a fold; its inputs are the fold's own."""
  result = spec.config(peft=peft)
  result.data.update(folds=folds, fold=fold)
  return result


def row(spec: Spec, peft: str, folds: int, fold: int) -> ConfigDict:
  """The reward model of a method and fold."""
  return spec.reads(config(spec, peft, folds, fold), **{
    name: f'fold{fold}/{stage}' for stage, name in SHARED.items()})


def collect(spec: Spec, options: argparse.Namespace) -> dict[str, Any]:
  """What is finished: {'fold', 'peft', 'reward': its summary}, what they share, and the means."""
  methods = words(options.peft, '--peft=lora,full')
  rows = [{'fold': fold, 'peft': peft, **stages} for peft in methods
          for fold, folder in finished.folders(spec.workdir, peft, 'fold')
          if (stages := finished.summaries(folder, ('reward',)))]
  means = {peft: {name: sum(values) / len(values) for name in AUC if (values := [
    r['reward'][name] for r in rows if r['peft'] == peft and name in r['reward']])}
    for peft in methods}
  return {'mean_over_folds': means, 'bag_of_words': bag_of_words(spec.config(), options.folds),
          **finished.results(spec.workdir, rows, unit='fold')}


def bag_of_words(config: ConfigDict, folds: int) -> list[float]:
  """AUC of a bag of words on each fold, trained on all rows outside of it.

  A reward model, and the bag of words in its summary, lack the tenth of these that makes its dev
  split.
  """
  load = Data(Run(config, '', 'reward'), None).examples
  return baseline.cross_validate(grouped.everything(load, 'labelled'), folds)


def table(results: Mapping[str, Any]) -> Table:
  """A row a method: mean AUC over the folds, each fold's, and the gain over the bag of words."""
  head, body = ['', 'mean AUC', 'folds', 'gain over the bag of words of the same rows'], []
  rows = results['rows']
  methods = list(dict.fromkeys(row['peft'] for row in rows))
  for peft in methods:
    mine = [row['reward'] for row in rows if row['peft'] == peft]
    for name, title in AUC.items():
      having = [s for s in mine if name in s]
      shared = name != 'auc'  # of every method alike
      if not having or (shared and peft != methods[-1]):
        continue
      words = [] if name == 'baseline_auc' else [s['baseline_auc'] for s in having]
      body.append(line(title if shared else f'{title}, {peft}', [s[name] for s in having], words))
  if results['bag_of_words']:
    body.append(line('bag of words, dev rows too', results['bag_of_words'], []))
  return head, body, [NOTE]


def line(title: str, folds: list[float], words: list[float]) -> list[str]:
  """[title, the mean AUC, each fold's, the gain over the bag of words'; '' without these]."""
  gain = estimate([mine - other for mine, other in zip(folds, words)])
  return [title, f'{sum(folds) / len(folds):.3f}', ' '.join(f'{x:.3f}' for x in folds),
          f'{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]' if gain else '']
