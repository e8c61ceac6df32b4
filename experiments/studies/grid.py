r"""LoRA of ranks 1, 2, 4, 8, 64 over q; q, v; q, k, v, o, beside Hu et al.'s Table 6: SFT.

    python -m experiments.studies grid --config=configs/coffee_methods.py:size=tiny \
        --workdir=runs/compare --seeds=0,1,2 --json=experiments/results/coffee_grid.json

Folders: see _supervised.py; `methods` and `rates` may share them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments import charts
from experiments.charts import SERIES, SMALL, SOFT, TEXT
from experiments.studies import _supervised as supervised
from experiments.studies._engine import Table
from experiments.studies._estimates import (
  Estimate,
  Rows,
  about,
  by_seed,
  estimate,
  over_seeds,
  show,
)
from experiments.studies._jobs import Row, add_seeds

TARGETS = {'q': ('attn/q',), 'q,v': ('attn/(q|v)',), 'q,k,v,o': ('attn/(q|k|v|o)',)}
"""Hu et al.'s sets of matrices."""
RANKS = (1, 2, 4, 8, 64)
PUBLISHED = {  # Hu et al., arXiv 2106.09685, Table 6: GPT-3, accuracy in % at RANKS
  'WikiSQL': {'q': (68.8, 69.6, 70.5, 70.4, 70.0), 'q,v': (73.4, 73.3, 73.7, 73.8, 73.5),
              'q,k,v,o': (74.1, 73.7, 74.0, 74.0, 73.9)},
  'MultiNLI': {'q': (90.7, 90.9, 91.1, 90.7, 90.7), 'q,v': (91.3, 91.4, 91.3, 91.6, 91.4),
               'q,k,v,o': (91.2, 91.7, 91.7, 91.5, 91.4)},
}
MEASURES = (('exact match, %', 'test_exact_match', 1, 100), ('loss', 'test_loss', 4, 1))
"""(title, field, digits, factor)."""


def rows() -> list[Row]:
  """LoRA by rank and matrices, at one scale alpha / r, as Hu et al. have it."""
  return [Row(name(targets, rank), 'lora',
              {'peft.targets': patterns, 'peft.rank': rank, 'peft.alpha': 2.0 * rank})
          for targets, patterns in TARGETS.items() for rank in RANKS]


def name(targets: str, rank: int) -> str:
  """The row for a set of TARGETS: 'qv_r4'."""
  return f'{targets.replace(",", "")}_r{rank}'


add_flags = add_seeds
phases, collect = supervised.study(lambda options: rows())


def table(results: Mapping[str, Any]) -> Table:
  """Ranks by sets of matrices, ours and the published ones, and whether they say the same."""
  records, body = results['rows'], []
  for targets in TARGETS:
    for title, field, digits, factor in MEASURES:
      cells = [show(_at(records, targets, rank, field, factor), digits) for rank in RANKS]
      body.append([targets, f'ours, {title}', *cells])
    for task, figures in PUBLISHED.items():
      body.append([targets, f'Hu et al., {task}', *(f'{x:.1f}' for x in figures[targets])])
  head = ['matrices', '', *(f'r = {rank}' for rank in RANKS)]
  return head, body, [*_agreement(records), *about(records)]


def _at(records: Rows, targets: str, rank: int, field: str, factor: float = 1) -> Estimate | None:
  values = by_seed(records, 'sft', field, name=name(targets, rank)).values()
  return estimate([factor * x for x in values])


def _agreement(records: Rows) -> list[str]:
  """Claims of Hu et al. (section 7), on our loss and exact match."""
  losses = {t: [_at(records, t, rank, 'test_loss') for rank in RANKS] for t in TARGETS}
  if None in sum(losses.values(), []):
    return ['Not all of the grid is finished: nothing is claimed.']
  more = lambda one, other: sum(a.mean > b.mean for a, b in zip(losses[one], losses[other]))
  ordered, all_four, count = more('q', 'q,v'), more('q,v', 'q,k,v,o'), len(RANKS)
  gains = {t: _gain([_at(records, t, rank, 'test_exact_match', 100).mean for rank in RANKS])
           for t in TARGETS}
  theirs = {t: max(_gain(lines[t]) for lines in PUBLISHED.values()) for t in TARGETS}
  enough = all(gains[t] <= theirs[t] for t in gains)
  points = lambda by: ', '.join(f'{gain:.1f} ({t})' for t, gain in by.items())
  return [
    f'More matrices are better at one rank (theirs: q worse than q, v everywhere): q, v has less '
    f'loss than q at {ordered} of {count} ranks: {"agrees" if ordered == count else "does not"}.',
    f'Theirs: q, k, v, o is about level with q, v. Ours: it has less loss at {all_four} of {count} '
    'ranks.',
    'A rank of 1 is nearly enough (theirs: from rank 1 to the best rank at most '
    f'{points(theirs)} points): ours gains {points(gains)} points of exact match: '
    f'{"agrees" if enough else "does not"}.',
  ]


def _gain(by_rank: Sequence[float]) -> float:
  """From the first rank, 1, to the best."""
  return max(by_rank) - by_rank[0]


def plot(results: Mapping[str, Any], file: str) -> None:
  """The test loss by rank, a line a set of matrices."""
  figure, (axis,) = charts.new(5.0, 3.2)
  for targets, colour in zip(TARGETS, SERIES):
    values = {i: x for i, rank in enumerate(RANKS) if (
      x := over_seeds(results['rows'], 'sft', 'test_loss', name=name(targets, rank)))}
    axis.plot(list(values), [x.mean for x in values.values()], 'o-', markersize=4, linewidth=1.2,
              color=colour, label=targets)
    for i, value in values.items():
      axis.plot([i, i], [value.low, value.high], color=colour, linewidth=1)
  axis.set_xticks(range(len(RANKS)), [f'r = {rank}' for rank in RANKS])
  axis.legend(frameon=False, fontsize=SMALL)
  axis.set_title('SFT loss, test', fontsize=TEXT, color=SOFT)
  charts.save(figure, file)
