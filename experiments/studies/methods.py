r"""PEFT methods side by side over seeds, each at a learning rate of its own.

    python -m experiments.studies methods --config=configs/coffee_methods.py:size=tiny \
        --workdir=runs/compare --seeds=0,1,2 --json=experiments/results/coffee_methods.json

SFT (loss and greedy exact match, or BLEU and ROUGE-L with references, test) and a reward model
(AUC, test), a row a method. On E2E NLG the published table stands beside ours:

    python -m experiments.studies methods --config=configs/e2e.py:checkpoint=models/smollm2 \
        --workdir=runs/e2e --methods=lora,full,topk,houlsby,pfeiffer,prefix --seeds=0 \
        --json=experiments/results/e2e.json

Folders: see _supervised.py; `grid` and `rates` may share them.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import charts
from experiments.charts import INK, SERIES, SMALL, SOFT, TEXT
from experiments.studies import _jobs as jobs
from experiments.studies import _supervised as supervised
from experiments.studies._engine import Table
from experiments.studies._estimates import (
  Rows,
  about,
  by_seed,
  difference,
  over_seeds,
  show,
  surely,
)
from experiments.studies._jobs import Row

FIGURES = (
  ('SFT loss', 'sft', 'test_loss', 4), ('perplexity', 'sft', 'test_perplexity', 3),
  ('exact match', 'sft', 'test_exact_match', 3), ('BLEU', 'sft', 'test_bleu', 1),
  ('ROUGE-L', 'sft', 'test_rouge_l', 3), ('RM AUC', 'reward', 'auc', 3),
  ('RM pair accuracy', 'reward', 'pair_accuracy', 3),
)
"""What methods are compared by, on the test split: (title, stage, field of its summary, digits)."""
PUBLISHED = {  # BLEU, ROUGE-L in %: Hu et al., arXiv 2106.09685, Table 3, GPT-2 medium, E2E NLG
  'full': (68.2, 71.0), 'pfeiffer': (66.3, 69.8), 'houlsby': (67.3, 70.7), 'topk': (68.1, 70.8),
  'prefix': (69.7, 71.4), 'lora': (70.4, 71.8)}
"""Adapter-L (0.37 M) stands beside pfeiffer, Adapter-H beside houlsby, FT-Top2 beside topk."""
UNTOUCHED = Row(
  'untouched', 'lora',
  {f'{stage}.{name}': value for stage in supervised.STAGES
   for name, value in (('steps', 1), ('optim.warmup_steps', 0))}, 1e-9)
"""What all methods start from: LoRA is the identity then, and one step of nothing leaves it so."""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Which methods, which seeds."""
  jobs.add_methods(parser)
  jobs.add_seeds(parser)


def rows(text: str) -> list[Row]:
  """A row a method, of a list with commas; 'all' adds what they start from."""
  return [UNTOUCHED] * (text == 'all') + [Row(name, name) for name in jobs.methods(text)]


phases, collect = supervised.study(
  lambda options: rows(options.methods), stages=supervised.STAGES)


def table(results: Mapping[str, Any]) -> Table:
  """A row a method, from the least test loss; then what lies outside LoRA's interval."""
  records, body = results['rows'], []
  figures = [figure for figure in FIGURES if by_seed(records, *figure[1:3])]
  beside = any(field == 'test_bleu' for _, _, field, _ in figures)
  for name in (names := supervised.by_loss(records)):
    rate = next(row['learning_rate'] for row in records if row['name'] == name)
    trained = list(by_seed(records, 'sft', 'parameters_trainable', name=name).values())
    cost = [f'{int(trained[0]):,}' if trained else '–', f'{rate:.3g}']
    body.append([name, *(cost if name != UNTOUCHED.name else ['0', '–']), *(
      show(over_seeds(records, stage, field, name=name), digits)
      for _, stage, field, digits in figures), *_published(name) * beside])
  head = ['method', 'trained by SFT', 'SFT rate', *(title for title, *_ in figures),
          *['Hu et al., GPT-2 M: BLEU, ROUGE-L'] * beside]
  notes = [_beside_lora(records, names, *figure[:3]) for figure in figures
           if figure[0] != 'perplexity']
  return head, body, [*filter(None, notes), *about(records)]


def _published(name: str) -> list[str]:
  bleu, rouge = PUBLISHED.get(name, (None, None))
  return ['–' if bleu is None else f'{bleu:.1f}, {rouge / 100:.3f}']


def _beside_lora(records: Rows, names: Sequence[str], title: str, stage: str, field: str) -> str:
  """Which methods differ from LoRA by more than chance, by differences of the same seed."""
  lora = by_seed(records, stage, field, name='lora')
  if len(lora) < 2:
    return ''
  signs = surely({name: difference(by_seed(records, stage, field, name=name), lora)
                  for name in names if name != 'lora'})
  better, worse = ('falls', 'rises') if 'loss' in field else ('rises', 'falls')
  return (f'{title}, differences to lora of the same seed (95 % t-interval without 0): better '
          f'{", ".join(signs[better]) or "none"}; worse {", ".join(signs[worse]) or "none"}.')


def plot(results: Mapping[str, Any], file: str) -> None:
  """A line a method, from the least test loss, a panel a figure; LoRA's interval is shaded."""
  records = results['rows']
  names = supervised.by_loss(records)
  panels = [(title, values) for title, stage, field, _ in FIGURES if title != 'perplexity'
            and any((values := {name: over_seeds(records, stage, field, name=name)
                                for name in names}).values())]
  figure, axes = charts.new(9.0, 0.9 + 0.24 * len(names), len(panels))
  for axis, (title, values) in zip(axes, panels):
    if (lora := values.get('lora')) and lora.n > 1:
      axis.axvspan(lora.low, lora.high, color=SERIES[1], alpha=0.15, linewidth=0)
    for i, name in enumerate(names):
      if value := values[name]:
        axis.plot([value.low, value.high], [i, i], color=INK, linewidth=1)
        axis.plot(value.mean, i, 'o', markersize=4, color=SERIES[name == 'lora'])
    axis.set_title(title, fontsize=TEXT, color=SOFT)
  axes[0].set_yticks(range(len(names)), names, fontsize=SMALL)
  axes[0].set_ylim(len(names) - 0.5, -0.5)
  charts.save(figure, file)
