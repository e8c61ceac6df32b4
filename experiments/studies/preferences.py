r"""Pairs: reward model and DPO beside what needs no training; RL, judged by others; length.

    python -m experiments.studies preferences \
        --config=configs/hh_rlhf.py:part=helpful,checkpoint=models/smollm2,mirror=<folder> \
        --workdir=runs/hh_helpful --seeds=0 --json=experiments/results/hh_rlhf.json

<workdir>/base/{tokenizer,pretrain,sft}        where the config has no checkpoint
<workdir>/probe/reward                         a frozen model, a logistic regression of its states
<workdir>/seed<k>/{reward,preference}          of all training pairs
<workdir>/seed<k>/half/{reward,rl,evaluate}    the reward model of half the pairs, RL against it
<workdir>/seed<k>/judge/reward                 that of the other half, which judges win rates
<workdir>/seed<k>/dpo/evaluate                 what the policy of DPO answers

No policy of RL learnt from a pair that its judge learnt from, and none from a test prompt; that of
DPO learnt from all training pairs, the judge's among them.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.studies import _finished as finished
from experiments.studies import _jobs as jobs
from experiments.studies import _judged as judged
from experiments.studies._engine import Table
from experiments.studies._estimates import Rows, about, over_seeds, show
from experiments.studies._jobs import SHARED, Job, Row, Spec
from perl.config import runs
from perl.evaluate import classification
from perl.jobs._artefacts import Artefacts
from perl.jobs._data import Data
from perl.jobs._run import Run

BASE = {name: f'base/{stage}' for stage, name in SHARED.items()}
WHOLE = {'evaluate.max_examples': 0}
"""Preferences are measured on all pairs of a split, and policies on as many as the config says."""
PROBE = Row('probe', '', {
  **WHOLE,
  'reward.reads': ('mean',), 'reward.probe': True, 'reward.steps': 1,
  'reward.optim.warmup_steps': 0}, 1e-9)
"""One step of nothing; the head reads the mean states, and is fitted before that step."""
PLACES = {'reward': ('', 'reward'), 'preference': ('', 'preference'),
          'half': ('half', 'reward'), 'judge': ('judge', 'reward'), 'rl': ('half', 'rl'),
          'evaluate': ('half', 'evaluate'), 'dpo': ('dpo', 'evaluate')}
"""Of a seed: the name in a row -> (folder, stage)."""
POLICIES = {'evaluate': 'RL', 'dpo': 'DPO'}
KEPT = ('pair_accuracy', 'probe_pair_accuracy', 'loss', 'kl', 'response_tokens', 'reward',
        'length_', 'finished', 'examples', 'parameters_', 'step_seconds', 'wall_seconds', 'seed',
        'peft', 'step_bytes', 'commit', 'versions', 'hardware')


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Which seeds, and how far it goes."""
  jobs.add_seeds(parser)
  parser.add_argument('--no_rl', action='store_true', help='reward model, DPO and probe alone')


def phases(spec: Spec, options: argparse.Namespace) -> list[list[Job]]:
  """Base; what learns from all pairs, and from halves; RL; what both policies answer."""
  seeds = jobs.seeds_of(options)
  first = [
    [spec.shared(config(spec, Row('base'), 0), tuple(SHARED), 'base')],
    [spec.job(config(spec, Row('all', '', WHOLE), seed), (stage,), f'seed{seed}')
     for seed in seeds for stage in ('reward', 'preference')]
    + [spec.job(config(spec, PROBE, 0), ('reward',), 'probe')]]
  if options.no_rl:
    return first
  half = _pairs(spec) // 2
  halves = {name: Row(name, '', {'reward.steps': max(1, spec.config().reward.steps // 2),
                                 'reward.max_examples': half, **WHOLE, **fields})
            for name, fields in (('half', {}), ('judge', {'reward.skip_examples': half}))}
  return [*first,
    [spec.job(config(spec, row, seed), ('reward',), f'seed{seed}/{name}')
     for seed in seeds for name, row in halves.items()],
    [spec.job(config(spec, Row('rl'), seed, reward=f'seed{seed}/half/reward'),
              ('rl', 'evaluate'), f'seed{seed}/half') for seed in seeds],
    [spec.job(config(spec, Row('dpo'), seed, reward=f'seed{seed}/half/reward',
                     policy=f'seed{seed}/preference'), ('evaluate',), f'seed{seed}/dpo')
     for seed in seeds]]


def config(spec: Spec, row: Row, seed: int, **inputs: str) -> ConfigDict:
  """A row over the base of all, with every stage that there is in the study."""
  result = spec.row(row, seed)
  made = [stage for stage in SHARED if stage in result.stages]
  result.stages = (*made, 'reward', 'preference', 'rl', 'evaluate')
  return spec.reads(result, **({} if row.name == 'base' else BASE), **inputs)


def _pairs(spec: Spec) -> int:
  """Training pairs of the config's data."""
  return len(Data(Run(spec.config(), '', 'reward'), None).examples('train', 'preference'))


def collect(spec: Spec, options: argparse.Namespace) -> dict[str, Any]:
  """What is finished: {'rows': [{'seed', name of PLACES: its summary, 'wins': {...}}], 'probe',
  'longer': the pair accuracy of the longer response}, and what the summaries share.
  """
  rows = []
  for seed, folder in finished.folders(spec.workdir, 'reward'):
    row = {'seed': seed}
    for name, (place, stage) in PLACES.items():
      if summary := runs.summary(folder.parent / place / stage):
        row[name] = {k: v for k, v in summary.items() if k.startswith(KEPT)}
    row['wins'] = judged.win_rates(
      {name: folder.parent / PLACES[name][0] / 'evaluate' for name in POLICIES},
      folder.parent / 'judge' / 'reward', ask=not options.table)
    rows.append(row)
  probe = {k: v for k, v in runs.summary(spec.workdir / 'probe' / 'reward').items()
           if k.startswith('probe_')}
  shared = finished.facts(rows)
  return {**shared, 'probe': probe, 'longer': longer(spec) if rows else {},
          'rows': [finished.slim(row, shared) for row in rows]}


def longer(spec: Spec) -> dict[str, float]:
  """Pair accuracy, on test, of whoever prefers the response of more tokens; a tie is half."""
  run = Run(config(spec, Row('longer'), 0), '', 'reward')
  data = Artefacts(run).data
  pairs = data.examples('test', 'preference')
  count = lambda texts: [len(ids) for ids in data.tokenizer.encode_batch(texts)]
  report = classification.preference_report(
    count([p.chosen for p in pairs]), count([p.rejected for p in pairs]),
    [p.group for p in pairs], bootstrap=run.config.evaluate.bootstrap)
  return {name: value for name, value in report.items() if name.startswith(('pair_', 'examples'))}


def table(results: Mapping[str, Any]) -> Table:
  """Pair accuracy of all that prefer; then reward, win rate and length of both policies."""
  rows = results['rows']
  lines = [
    ['the longer one', _whole(results['longer'], 'pair_accuracy')],
    ['frozen model, logistic regression', _whole(results['probe'], 'probe_pair_accuracy')],
    *([title, _seeds(rows, name, 'pair_accuracy')] for name, title in (
      ('reward', 'reward model'), ('preference', 'DPO, its implicit reward'),
      ('half', 'reward model of half the pairs'), ('judge', 'that of the other half')))]
  body = [[f'pair accuracy: {name}', *cells] for name, *cells in lines if cells[0] != '–']
  for place, title in POLICIES.items():
    for field, what in FIGURES:
      if (value := _seeds(rows, place, field)) != '–':
        body.append([f'{title}: {what}', value])
    wins = [{'seed': row['seed'], 'wins': row['wins'].get(place, {})} for row in rows]
    if (value := _seeds(wins, 'wins', 'win_rate')) != '–':
      body.append([f'{title}: win rate against the anchor, by the other half\'s', value])
  return ['on test', ''], body, [
    'In brackets: 95 % group-bootstrap interval over test examples, of the first seed.',
    'Share of the gain that is length: by bins of 20 tokens and by the anchor\'s slope (Singhal '
    'et al., arXiv 2310.03716: 0.7 to 0.9 of it, by bins); a ratio, which says nothing where the '
    'gain\'s interval holds 0.', *about(rows)]


FIGURES = (
  ('reward_before', 'reward before'), ('reward', 'reward after'), ('length_gain', 'reward gain'),
  ('length_gain_within', 'of it within bins of length'),
  ('length_gain_by_length', 'of it by the anchor\'s slope on length'),
  ('length_share_by_bins', 'share that is length, by bins'),
  ('length_share_by_slope', 'share that is length, by slope'),
  ('response_tokens_before', 'tokens before'), ('response_tokens', 'tokens after'), ('kl', 'KL'))


def _seeds(rows: Rows, place: str, field: str) -> str:
  """The mean over seeds; behind it the interval of the first."""
  value = show(over_seeds(rows, place, field), 3)
  bracket = next((_bracket(row[place], field) for row in rows if field in row.get(place, {})), '')
  return value + bracket


def _whole(figures: Mapping[str, Any], field: str) -> str:
  return f'{figures[field]:.3f}{_bracket(figures, field)}' if field in figures else '–'


def _bracket(figures: Mapping[str, Any], field: str) -> str:
  when = '_before' if field.endswith('_before') else ''
  low, high = (figures.get(f'{field.removesuffix(when)}_{end}{when}') for end in ('low', 'high'))
  return '' if low is None or high is None else f' [{low:.3f}, {high:.3f}]'
