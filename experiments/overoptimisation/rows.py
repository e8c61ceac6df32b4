"""The reward models of the study, and the curves of what was optimised against each."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments import sweep
from experiments.compare.shared import Job
from experiments.statistics import Estimate, estimate
from perl.config import runs
from perl.config.fields import ConfigError

Found = Sequence[dict[str, Any]]
"""Rows of `collect`."""

KINDS = ('best_of_n', 'rl')
"""How a policy is optimised against a reward model: the stages that have curves."""
PROXY, GOLD = 'reward', 'gold_reward'
CURVE = ('kl', PROXY, GOLD, 'response_tokens', 'finished', 'entropy', 'repetition', 'distinct_2',
         'uncertainty')
"""What is kept of a curve's points, where they have it."""
SLIM = ('pair_accuracy', 'pair_accuracy_low', 'pair_accuracy_high', 'dev_loss', 'dev_pair_accuracy',
        'parameters_trainable', 'wall_seconds')


class Row(NamedTuple):
  """A reward model, by what it has to learn with and from."""

  size: str  # model.size of base and anchor under it
  rank: int  # of its adapter
  pairs: int  # that it has learnt from; 0 is all

  @property
  def name(self) -> str:
    """Of its folder: 'micro_r8_n500'."""
    return f'{self.size}_r{self.rank}_n{self.pairs}'


def families(
  own: Row, ranks: Sequence[int], pairs: Sequence[int], sizes: Sequence[str]
) -> dict[str, list[Row]]:
  """{'rank' | 'pairs' | 'size': its rows}: each varies one thing of `own`, the config's.

  Raises:
    ConfigError: a family that lacks the config's own, with which the others are compared.
  """
  values = {'rank': ranks, 'pairs': pairs, 'size': sizes}
  for name, given in values.items():
    if given and getattr(own, name) not in given:
      raise ConfigError(f"expected the config's own {name}, {getattr(own, name)}, among those to "
                        f'compare, found {", ".join(map(str, given))}; add it')
  return {name: [own._replace(**{name: x}) for x in given] for name, given in values.items()}


class Study:
  """The configs of a study and where they run."""

  def __init__(self, spec: str, overrides: Sequence[str], workdir: str) -> None:
    self.sweep = sweep.Sweep(spec, overrides, workdir, reward_from='')
    self.workdir = pathlib.Path(workdir)
    config = self.sweep.config()
    self.row = Row(config.model.size, config.peft.rank, config.reward.max_examples)

  def folder(self, row: Row, seed: int) -> pathlib.Path:
    """Of the row's stages."""
    return self.workdir / f'seed{seed}' / row.name

  def base(self, size: str) -> Job:
    """Base and anchor of a size; the tokenizer is that of the config's own."""
    config, folder = self.sweep.config(), self.workdir / 'base'
    stages = [stage for stage in config.stages if stage in ('tokenizer', 'pretrain', 'sft')]
    if size == self.row.size:
      return Job(config, stages, folder / size)
    if config.model.checkpoint:
      raise ConfigError(f'expected no other sizes over a checkpoint, found {size}; leave --sizes')
    config.model.size = size
    config.inputs.tokenizer = str(folder / self.row.size / 'tokenizer')
    return Job(config, [stage for stage in stages if stage != 'tokenizer'], folder / size)

  def judged(self, row: Row, seed: int) -> Job:
    """The row's reward model, and what it says of the anchor's samples.

    All rows of a seed judge the samples that its first one, the config's own, has drawn.
    """
    config = self._over(row.size, seed)
    config.peft.alpha *= row.rank / config.peft.rank  # one scale alpha / r for all ranks
    config.peft.rank, config.reward.max_examples = row.rank, row.pairs
    if row != self.row:
      config.best_of_n.sampled = str(self.folder(self.row, seed) / 'best_of_n')
    return Job(config, ('reward', 'best_of_n'), self.folder(row, seed))

  def optimised(self, row: Row, seed: int) -> Job:
    """RL against the row's reward model; the policy's own adapter is the same for all rows."""
    config = self._over(row.size, seed)
    config.inputs.reward = str(self.folder(row, seed) / 'reward')
    return Job(config, ('rl',), self.folder(row, seed))

  def _over(self, size: str, seed: int) -> ConfigDict:
    config, folder = self.sweep.config(seed=seed), self.workdir / 'base'
    config.model.size = size
    places = {'tokenizer': ('tokenizer', self.row.size), 'base': ('pretrain', size),
              'anchor': ('sft', size)}
    for name, (stage, of) in places.items():
      if stage in config.stages:
        config.inputs[name] = str(folder / of / stage)
    return config


def collect(
  workdir: str | pathlib.Path, wanted: Mapping[str, Sequence[Row]]
) -> Iterator[dict[str, Any]]:
  """What is finished of the rows of all families, each once.

  Yields:
    {'size', 'rank', 'pairs', 'seed', 'reward': its chief figures, 'best_of_n' and 'rl': points
    {'step', 'kl', 'reward', 'gold_reward', ...}; step is n, or updates; and 'seconds' by stage}.
  """
  for row in dict.fromkeys(row for family in wanted.values() for row in family):
    for folder in sorted(pathlib.Path(workdir).glob(f'seed*/{row.name}')):
      summaries = runs.summaries(folder)
      if 'reward' in summaries:
        done = {kind: runs.summary(folder / kind) for kind in KINDS}
        yield {
          **row._asdict(), 'seed': int(folder.parent.name.removeprefix('seed')),
          'reward': {k: summaries['reward'][k] for k in SLIM if k in summaries['reward']},
          'seconds': {'reward': summaries['reward'].get('wall_seconds')} | {
            kind: s.get('wall_seconds') for kind, s in done.items() if s},
          **{kind: points(runs.read_metrics(folder / kind)) for kind in KINDS if done[kind]}}


def points(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
  """The evaluations among the rows of metrics.jsonl, by step."""
  return [{'step': row['step'], **{k: row[f'dev/{k}'] for k in CURVE if f'dev/{k}' in row}}
          for row in sorted(rows, key=lambda row: row['step'])
          if f'dev/{PROXY}' in row and f'dev/{GOLD}' in row]


def of(found: Found, row: Row) -> list[dict[str, Any]]:
  """The seeds of a row."""
  return [r for r in found if all(r[k] == v for k, v in row._asdict().items())]


def gains(curve: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
  """{'step', 'd', 'reward', 'gold_reward'}: d = sqrt KL; both rewards as gains over the anchor's.

  The curve's first point is the anchor. An estimate of KL may fall below 0 by chance.
  """
  first = curve[0]
  return [{'step': p['step'], 'd': max(p['kl'], 0.0) ** 0.5,
           **{name: p[name] - first[name] for name in (PROXY, GOLD)}} for p in curve]


def over_seeds(curves: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
  """The `gains` of several seeds in one: by step the mean d, and an Estimate of each reward.

  Steps that not every seed has are left out.
  """
  by_step = [{p['step']: p for p in curve} for curve in curves]
  steps = [p['step'] for p in curves[0] if all(p['step'] in one for one in by_step)]
  column = lambda step, name: [one[step][name] for one in by_step]
  mean = lambda values: sum(values) / len(values)
  return [{'step': s, 'd': mean(column(s, 'd')),
           **{name: estimate(column(s, name)) for name in (PROXY, GOLD)}} for s in steps]


def fall(curves: Sequence[Sequence[Mapping[str, float]]]) -> tuple[dict[str, Any], Estimate]:
  """(the point of `over_seeds` with the highest gold reward, what gold loses from it to the end).

  The highest of noisy points is high by chance too, and so is the loss, by a little.
  """
  top = max(over_seeds(curves), key=lambda p: p[GOLD].mean)
  at = lambda curve, step: next(p[GOLD] for p in curve if p['step'] == step)
  return top, estimate([at(curve, top['step']) - curve[-1][GOLD] for curve in curves])
