r"""Reward models are optimised against until the gold reward falls (Gao et al., arXiv 2210.10760).

    python -m experiments.studies overoptimisation --config=configs/overoptimisation.py \
        --workdir=runs/overoptimisation --seeds=0,1,2 \
        --json=experiments/results/overoptimisation.json \
        --plot=experiments/results/overoptimisation.png

Reward models of several ranks, numbers of training pairs and sizes; against each, the anchor's best
of n and RL without a KL penalty, by proxy and gold reward over the root of the KL. One thing is
varied at a time; the config's own reward model is in all three families.

<workdir>/base/<size>/{tokenizer,pretrain,sft}      once; the tokenizer is that of the config's size
<workdir>/seed<k>/<row>/{reward,best_of_n}          a reward model, and its choices among samples
<workdir>/seed<k>/<row>/rl                          of rows of the config's size

A reward model of another size has a base and an SFT of its own, so that it is no adapter of the
policy's base: it judges the same samples by their text, and is not put to RL. Seeds share base and
anchor: intervals say how reward models, samples and RL differ, not how bases do. Best-of-n's KL is
the analytic one, an upper bound where responses repeat. All curves are of the dev prompts.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.studies import _finished as finished
from experiments.studies import _gold_curves as curves
from experiments.studies import _gold_forms as forms
from experiments.studies._engine import Table
from experiments.studies._estimates import Rows, about, over_seeds, show
from experiments.studies._gold_curves import GOLD, PROXY, Curve
from experiments.studies._jobs import SHARED, Job, Spec, add_seeds, numbers, seeds_of, words
from perl.config import runs
from perl.config.fields import ConfigError
from perl.train import provenance

KINDS = {'best_of_n': 'best of n', 'rl': 'RL'}
"""How a policy is optimised against a reward model: stages that have curves, and their titles."""
FAMILIES = {'rank': ('rank of the reward model', 'rank {}'),
            'pairs': ('training pairs', '{} pairs'), 'size': ('size of its base', '{}')}
"""What is varied: its title in the chart, and that of a value."""
CURVE = ('kl', PROXY, GOLD, 'response_tokens', 'finished', 'entropy', 'repetition', 'distinct_2',
         'uncertainty')
"""What is kept of a curve's points, where they have it."""
SLIM = ('pair_accuracy', 'pair_accuracy_low', 'pair_accuracy_high', 'dev_loss', 'dev_pair_accuracy',
        'parameters_trainable', 'wall_seconds')


class Judge(NamedTuple):
  """A reward model, by what it has to learn with and from."""

  size: str  # model.size of base and anchor under it
  rank: int  # of its adapter
  pairs: int  # that it has learnt from; 0 is all

  @property
  def name(self) -> str:
    """Of its folder: 'micro_r8_n500'."""
    return f'{self.size}_r{self.rank}_n{self.pairs}'

  @classmethod
  def named(cls, name: str) -> 'Judge':
    """That of a folder."""
    size, rank, pairs = name.rsplit('_', 2)
    return cls(size, int(rank[1:]), int(pairs[1:]))

  def __str__(self) -> str:
    return f'{self.size}, rank {self.rank}, {self.pairs or "all"} pairs'


Families = Mapping[str, Sequence[Judge]]


def add_flags(parser: argparse.ArgumentParser) -> None:
  """What is varied, and the seeds."""
  add_seeds(parser)
  parser.add_argument('--ranks', default='1,8,32', help="ranks of reward models; '' for none")
  parser.add_argument('--pairs', default='125,500,2000', help='numbers of training pairs')
  parser.add_argument('--sizes', default='nano,micro,tiny', help='names of model.size')


def own(spec: Spec) -> Judge:
  """The config's reward model."""
  config = spec.config()
  return Judge(config.model.size, config.peft.rank, config.reward.max_examples)


def families(first: Judge, options: argparse.Namespace) -> dict[str, list[Judge]]:
  """{'rank' | 'pairs' | 'size': its reward models}: each varies one thing of the config's.

  Raises:
    ConfigError: a family that lacks the config's own, with which the others are compared.
  """
  values = {
    name: read(text, example) if text else () for name, read, text, example in (
      ('rank', numbers, options.ranks, '--ranks=1,8,32'),
      ('pairs', numbers, options.pairs, '--pairs=125,500,2000'),
      ('size', words, options.sizes, '--sizes=nano,micro'))}
  for name, some in values.items():
    if some and getattr(first, name) not in some:
      raise ConfigError(f"expected the config's own {name}, {getattr(first, name)}, among those to "
                        f'compare, found {", ".join(map(str, some))}; add it')
  return {name: [first._replace(**{name: x}) for x in some] for name, some in values.items()}


def every(wanted: Families) -> list[Judge]:
  """The reward models of all families, each once."""
  return list(dict.fromkeys(judge for family in wanted.values() for judge in family))


def phases(spec: Spec, options: argparse.Namespace) -> list[list[Job]]:
  """Bases by size, the reward model whose samples the others judge, those others, and RL."""
  first, seeds = own(spec), seeds_of(options)
  judges = sorted(every(families(first, options)), key=lambda judge: judge != first)
  sizes = list(dict.fromkeys(judge.size for judge in judges))
  return [
    [base(spec, size) for size in sizes[:1]],
    [base(spec, size) for size in sizes[1:]],
    [judged(spec, judge, seed) for seed in seeds for judge in judges[:1]],
    [judged(spec, judge, seed) for seed in seeds for judge in judges[1:]],
    [optimised(spec, j, seed) for seed in seeds for j in judges if j.size == first.size]]


def base(spec: Spec, size: str) -> Job:
  """Base and anchor of a size; the tokenizer is that of the config's own."""
  config, first = spec.config(), own(spec)
  if size == first.size:
    return spec.shared(config, tuple(SHARED), f'base/{size}')
  if config.model.checkpoint:
    raise ConfigError(f'expected no other sizes over a checkpoint, found {size}; leave --sizes')
  config.model.size = size
  spec.reads(config, tokenizer=f'base/{first.size}/tokenizer')
  return spec.job(config, ('pretrain', 'sft'), f'base/{size}')


def judged(spec: Spec, judge: Judge, seed: int) -> Job:
  """The reward model, and what it says of the anchor's samples.

  All of a seed judge the samples that its first one, the config's own, has drawn.
  """
  config, first = _over(spec, judge.size, seed), own(spec)
  config.peft.alpha *= judge.rank / config.peft.rank  # one scale alpha / r for all ranks
  config.peft.rank, config.reward.max_examples = judge.rank, judge.pairs
  if judge != first:
    config.best_of_n.sampled = str(spec.workdir / f'seed{seed}' / first.name / 'best_of_n')
  return Job(config, ('reward', 'best_of_n'), spec.workdir / f'seed{seed}' / judge.name)


def optimised(spec: Spec, judge: Judge, seed: int) -> Job:
  """RL against the reward model; the policy's own adapter is the same for all of them."""
  config, folder = _over(spec, judge.size, seed), spec.workdir / f'seed{seed}' / judge.name
  config.inputs.reward = str(folder / 'reward')
  return Job(config, ('rl',), folder)


def _over(spec: Spec, size: str, seed: int) -> ConfigDict:
  config, first = spec.config(seed=seed), own(spec)
  config.model.size = size
  return spec.reads(config, tokenizer=f'base/{first.size}/tokenizer', base=f'base/{size}/pretrain',
                    anchor=f'base/{size}/sft')


def collect(spec: Spec, options: argparse.Namespace) -> dict[str, Any]:
  """What is finished of all families, of any seed, and the fits.

  Returns:
    'rows': [{'size', 'rank', 'pairs', 'seed', 'reward': its chief figures, 'best_of_n' and 'rl':
    points {'step', 'kl', 'reward', 'gold_reward', ...}; step is n, or updates; and 'seconds' by
    stage}], 'families': {name: folders of its rows}, 'fits', 'seeds', and where it ran.
  """
  wanted = families(own(spec), options)
  rows = [row for judge in every(wanted) for row in _finished(spec, judge)]
  fits = [
    {**judge._asdict(), 'kind': kind, **form._asdict(),
     'peak': peak if math.isfinite(peak) else None}
    for judge in every(wanted) for kind in KINDS
    if (form := curves.fitted(kind, gains(rows, judge, kind)))
    for peak in [forms.peak(kind, form)]]
  return {**provenance.record(), 'seeds': sorted({row['seed'] for row in rows}),
          'families': {name: [judge.name for judge in family] for name, family in wanted.items()},
          'fits': fits, 'rows': rows}


def _finished(spec: Spec, judge: Judge) -> list[dict[str, Any]]:
  rows = []
  for seed, folder in finished.folders(spec.workdir, judge.name):
    stages = finished.summaries(folder, ('reward', *KINDS))
    if reward := stages.get('reward'):
      rows.append({
        **judge._asdict(), 'seed': seed, 'reward': {k: reward[k] for k in SLIM if k in reward},
        'seconds': {stage: s.get('wall_seconds') for stage, s in stages.items()},
        **{kind: points(runs.read_metrics(folder / kind)) for kind in KINDS if kind in stages}})
  return rows


def points(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
  """The evaluations among the rows of metrics.jsonl, by step."""
  return [{'step': row['step'], **{k: row[f'dev/{k}'] for k in CURVE if f'dev/{k}' in row}}
          for row in sorted(rows, key=lambda row: row['step'])
          if f'dev/{PROXY}' in row and f'dev/{GOLD}' in row]


def gains(rows: Rows, judge: Judge, kind: str) -> list[Curve]:
  """What was gained against a reward model, a curve a seed."""
  return [curves.gains(row[kind]) for row in rows if row.get(kind)
          and all(row[k] == v for k, v in judge._asdict().items())]


def _families(results: Mapping[str, Any]) -> dict[str, list[Judge]]:
  return {name: list(map(Judge.named, names)) for name, names in results['families'].items()}


def table(results: Mapping[str, Any]) -> Table:
  """A line a reward model and way of optimising: where gold peaks and ends, and the fitted form."""
  rows, body = results['rows'], []
  falls: dict[str, list[str]] = {kind: [] for kind in KINDS}
  totals = dict.fromkeys(KINDS, 0)
  for judge in every(_families(results)):
    accuracy = show(over_seeds(rows, 'reward', 'pair_accuracy', **judge._asdict()), 3)
    for kind, title in KINDS.items():
      if not (paths := gains(rows, judge, kind)):
        continue
      top, loss = curves.fall(paths)
      body.append([str(judge), accuracy, title, *_cells(kind, paths, top)])
      totals[kind] += loss.n > 1
      if loss.n > 1 and loss.low > 0:
        falls[kind].append(f'{judge} by {loss.mean:.3f}')
  head = ['reward model', 'pair accuracy', 'optimised by', 'gold, most', 'at √KL', 'gold, end',
          'at √KL', 'proxy, end', 'α', 'β', 'residual', 'R²']
  return head, body, [
    'Gold and proxy are gains over the anchor, in their own units. √KL in root nats; of best-of-n '
    'the analytic one. Forms: best of n R = d (α - β d), RL R = d (α - β log d), d = √KL; residual '
    'is the root mean square, in units of gold.', *about(rows), *(
      f'{title}: gold falls from its highest point to the end (95 % t-interval of the loss without '
      f'0) for {len(falls[kind])} of {totals[kind]} reward models: '
      f'{"; ".join(falls[kind]) or "none"}.' for kind, title in KINDS.items() if totals[kind])]


def _cells(kind: str, paths: Sequence[Curve], top: Mapping[str, Any]) -> list[str]:
  end, form = curves.over_seeds(paths)[-1], curves.fitted(kind, paths)
  shown = [f'{x:.3f}' for x in form[:4]] if form else ['–'] * 4
  return [show(top[GOLD], 3, '+'), f'{top["d"]:.2f}', show(end[GOLD], 3, '+'), f'{end["d"]:.2f}',
          show(end[PROXY], 2, '+'), *shown]


def plot(results: Mapping[str, Any], file: str) -> None:
  """A column a family, best-of-n above RL; see _gold_curves.draw."""
  shown = {name: family for name, family in _families(results).items() if family}
  curves.draw({kind: {f'{title}: {FAMILIES[name][0]}': {
    FAMILIES[name][1].format(getattr(judge, name)): gains(results['rows'], judge, kind)
    for judge in family} for name, family in shown.items()} for kind, title in KINDS.items()}, file)
