r"""LoRA over a quantized base beside one over float32 (Dettmers et al., arXiv 2305.14314, Table 3).

    python -m experiments.studies qlora \
        --config=configs/hh_rlhf.py:part=harmless,checkpoint=models/smollm2 \
        --workdir=runs/qlora --seeds=0 --config.evaluate.max_examples=0 --config.reward.steps=23 \
        --json=experiments/results/qlora.json

<workdir>/base/{tokenizer,pretrain}      where the config has no checkpoint
<workdir>/seed<k>/<row>/{sft,reward}     a row's own anchor, where the config tunes one, and its
                                         reward model: adapters over one precision fit no other

Rows of a seed see the same examples in the same order, from the same adapter.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.studies import _finished as finished
from experiments.studies import _jobs as jobs
from experiments.studies._engine import Table
from experiments.studies._estimates import about, by_seed, difference, over_seeds, show
from experiments.studies._jobs import Job, Row, Spec
from perl import trees
from perl.jobs._plan import Plan
from perl.quantized import bits_per_parameter

STAGES = ('sft', 'reward')
DENSE = 'float32'
ROWS = {name: Row(name, '', fields) for name, fields in (
  (DENSE, {}),
  ('int8', {'model.quantize': 'int8'}),
  ('nf4', {'model.quantize': 'nf4'}),
  ('fp4', {'model.quantize': 'fp4'}),
  ('nf4_double', {'model.quantize': 'nf4', 'model.double_quantize': True}))}
FIGURES = (
  ('SFT loss, dev', 'sft', 'loss', 4), ('RM loss, test', 'reward', 'loss', 4),
  ('RM AUC', 'reward', 'auc', 3), ('RM pair accuracy', 'reward', 'pair_accuracy', 3),
  ('RM step, s', 'reward', 'step_seconds', 2))
PUBLISHED = {  # Table 3: GLUE (RoBERTa large); Super-NaturalInstructions, T5 80 M to 11 B
  DENSE: ('LoRA BF16', '88.8', '40.5, 42.6, 47.1, 55.4, 60.7'),
  'int8': ('QLoRA Int8', '88.8', '40.4, 42.9, 45.4, 56.5, 60.7'),
  'fp4': ('QLoRA FP4', '88.6', '40.3, 42.4, 47.5, 55.6, 60.9'),
  'nf4_double': ('QLoRA NF4 + DQ', '–', '40.4, 42.7, 47.7, 55.3, 60.9')}


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Which precisions, which seeds."""
  parser.add_argument('--only', default='all', help='some rows, with commas')
  jobs.add_seeds(parser)


def phases(spec: Spec, options: argparse.Namespace) -> list[list[Job]]:
  """The base, then every row of every seed."""
  names = jobs.chosen(options.only, list(ROWS), '--only')
  return [
    [spec.shared(spec.config(), ('tokenizer', 'pretrain'), 'base')],
    [spec.job(_config(spec, ROWS[name], seed), STAGES, f'seed{seed}/{name}')
     for seed in jobs.seeds_of(options) for name in names]]


def _config(spec: Spec, row: Row, seed: int) -> ConfigDict:
  return spec.reads(spec.row(row, seed), tokenizer='base/tokenizer', base='base/pretrain')


def collect(spec: Spec, options: argparse.Namespace) -> dict[str, Any]:
  """{'rows': [{'name', 'seed', 'peft', stage: its summary}], 'sizes': {name: {'bits' a weight of
  the quantized matrices, 'bytes' of the whole base}}}, and what the summaries share.
  """
  del options
  rows = [{'name': name, 'seed': seed, 'peft': name, **stages} for name in ROWS
          for seed, folder in finished.folders(spec.workdir, name)
          if (stages := finished.summaries(folder, STAGES))]
  shared = finished.facts(rows)
  return {**shared, 'sizes': {name: sizes(spec, ROWS[name]) for name in ROWS} if rows else {},
          'rows': [finished.slim(row, shared) for row in rows]}


def sizes(spec: Spec, row: Row) -> dict[str, float]:
  """Of the row's frozen base, by shapes alone."""
  params = Plan(_config(spec, row, 0), 'reward').anchor.params
  return {'bits': bits_per_parameter(params) or 32.0, 'bytes': trees.size_bytes(params)}


def table(results: Mapping[str, Any]) -> Table:
  """A row a precision; what Dettmers et al. print of it beside."""
  records, body = results['rows'], []
  names = [name for name in ROWS if any(row['name'] == name for row in records)]
  figures = [figure for figure in FIGURES if by_seed(records, *figure[1:3])]
  for name in names:
    size = results['sizes'][name]
    peak = over_seeds(records, 'reward', 'peak_memory_bytes', name=name)
    published = PUBLISHED.get(name, ('–', '–', '–'))
    body.append([name, f'{size["bits"]:.3g}', f'{size["bytes"] / 2**20:,.0f}',
                 f'{peak.mean / 2**20:,.0f}' if peak else '–',
                 *(show(over_seeds(records, stage, field, name=name), digits)
                   for _, stage, field, digits in figures), *published])
  head = ['base', 'bits a weight', 'base, MiB', 'RM step, peak MiB',
          *(title for title, *_ in figures), 'Dettmers et al.', 'GLUE', 'Super-NI']
  return head, body, [*_beside(records, names, figures), _interval(records), *about(records)]


def _beside(records: Any, names: list[str], figures: list) -> list[str]:
  """Differences to float32 of the same seed."""
  notes = []
  for title, stage, field, digits in figures[:-1]:
    dense = by_seed(records, stage, field, name=DENSE)
    changes = {name: difference(by_seed(records, stage, field, name=name), dense)
               for name in names if name != DENSE}
    if known := {name: change for name, change in changes.items() if change}:
      notes.append(f'{title}, less that over float32 of the same seed: ' + ', '.join(
        f'{name} {show(change, digits, "+")}' for name, change in known.items()) + '.')
  return notes


def _interval(records: Any) -> str:
  """How wide the interval of a single run is: what a difference has to be read against."""
  for row in records:
    reward = row.get('reward', {})
    if row['name'] == DENSE and 'auc_low' in reward:
      return (f'AUC over float32, seed {row["seed"]}: 95 % group-bootstrap interval over test '
              f'[{reward["auc_low"]:.3f}, {reward["auc_high"]:.3f}].')
  return 'No interval over test examples.'
