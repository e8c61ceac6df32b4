"""Tables of a comparison, with what they say; every sentence is computed from the rows."""

from collections.abc import Callable, Sequence
from typing import Any

from experiments import paper, tables
from experiments.compare import rows as kinds
from experiments.compare.rows import Found
from experiments.statistics import Estimate, estimate

Table = tuple[list[str], list[list[str]], list[str]]
NONE = '–'
KEPT = ('loss', 'test_', 'auc', 'pair_accuracy', 'probe_auc', 'baseline_auc', 'parameters_',
        'step_seconds', 'wall_seconds', 'seed', 'peft')


def methods(found: Found) -> Table:
  """A row a method, from the least test loss; then what lies outside LoRA's interval."""
  figures = [(title, stage, field, f'{{:.{4 if "loss" in field else 3}f}}')
             for title, stage, field in kinds.FIGURES if kinds.values(found, stage, field)]
  names, body = kinds.by_loss(found), []
  for name in names:
    first = next(row for row in found if row['name'] == name)
    trained = kinds.values(found, 'sft', 'parameters_trainable', name=name)
    cost = [f'{int(trained[0]):,}' if trained else NONE, f'{first["learning_rate"]:.3g}']
    body.append([name, *(cost if name != kinds.UNTOUCHED.name else ['0', NONE]), *(
      _cell(kinds.over_seeds(found, stage, field, name=name), show)
      for _, stage, field, show in figures)])
  head = ['method', 'trained by SFT', 'SFT rate', *(title for title, *_ in figures)]
  notes = [_beside_lora(found, names, *figure[:3]) for figure in figures
           if figure[0] != 'perplexity']
  return head, body, [*filter(None, notes), *_about(found)]


def _beside_lora(found: Found, names: Sequence[str], title: str, stage: str, field: str) -> str:
  """Which methods differ from LoRA by more than chance, by differences of the same seed."""
  def by_seed(name):
    return {row['seed']: row[stage][field] for row in found
            if row['name'] == name and field in row.get(stage, {})}

  lora, better, worse = by_seed('lora'), [], []
  sign = -1 if 'loss' in field else 1
  for name in names:
    gains = [sign * (x - lora[seed]) for seed, x in by_seed(name).items() if seed in lora]
    gain = estimate(gains)
    if name == 'lora' or gain is None or gain.n < 2:
      continue
    if gain.low > 0:
      better.append(name)
    elif gain.high < 0:
      worse.append(name)
  if len(lora) < 2:
    return ''
  say = lambda some: ', '.join(some) or 'none'
  return (f'{title}, differences to lora of the same seed (95 % t-interval without 0): better '
          f'{say(better)}; worse {say(worse)}.')


def grid(found: Found) -> Table:
  """Ranks by sets of matrices, ours and the published ones, and whether they say the same."""
  head = ['matrices', '', *(f'r = {rank}' for rank in kinds.GRID_RANKS)]
  body = []
  measure = (('exact match, %', 'test_exact_match', '{:.1f}', 100),
             ('loss', 'test_loss', '{:.4f}', 1))
  for targets in kinds.GRID_TARGETS:
    for title, field, show, times in measure:
      cells = [_cell(_at(found, targets, rank, field, times), show) for rank in kinds.GRID_RANKS]
      body.append([targets, f'ours, {title}', *cells])
    for task, figures in paper.RANK_GRID.items():
      body.append([targets, f'Hu et al., {task}', *(f'{x:.1f}' for x in figures[targets])])
  return head, body, [*_agreement(found), *_about(found)]


def _at(found, targets: str, rank: int, field: str, times: float) -> Estimate | None:
  name = kinds.grid_name(targets, rank)
  return estimate([times * x for x in kinds.values(found, 'sft', field, name=name)])


def _agreement(found: Found) -> list[str]:
  """Claims of Hu et al. (section 7), on our loss and exact match."""
  mean = lambda targets, rank: getattr(_at(found, targets, rank, 'test_loss', 1), 'mean', None)
  table = {t: [mean(t, r) for r in kinds.GRID_RANKS] for t in kinds.GRID_TARGETS}
  if any(x is None for line in table.values() for x in line):
    return ['Not all of the grid is finished: nothing is claimed.']
  ordered = sum(table['q'][i] > table['q,v'][i] for i in range(len(kinds.GRID_RANKS)))
  all_four = sum(table['q,v'][i] > table['q,k,v,o'][i] for i in range(len(kinds.GRID_RANKS)))
  gains = {t: _gain([_at(found, t, r, 'test_exact_match', 100).mean for r in kinds.GRID_RANKS])
           for t in kinds.GRID_TARGETS}
  theirs = {t: max(_gain(lines[t]) for lines in paper.RANK_GRID.values())
            for t in kinds.GRID_TARGETS}
  enough = all(gains[t] <= theirs[t] for t in gains)
  points = lambda by: ', '.join(f'{gain:.1f} ({t})' for t, gain in by.items())
  count = len(kinds.GRID_RANKS)
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


def rates(found: Found) -> Table:
  """The dev loss of every method at each of its learning rates, the least marked."""
  times = sorted({row['times'] for row in found})
  body, edges = [], []
  for name in dict.fromkeys(row['peft'] for row in found):
    tried = [[row for row in found if (row['peft'], row['times']) == (name, t)] for t in times]
    losses = [kinds.over_seeds(rows, 'sft', 'loss') for rows in tried]
    least = min((x.mean for x in losses if x), default=None)
    known = [x.mean for x in losses if x]
    if len(known) > 1 and least in (known[0], known[-1]):
      edges.append(name)
    body.append([name, *(
      f'{_cell(x, "**{:.4f}**" if x.mean == least else "{:.4f}")} at {rows[0]["learning_rate"]:.3g}'
      if x else NONE for x, rows in zip(losses, tried))])
  head = ['method', *(f'its rate times {t:g}' for t in times)]
  return head, body, [
    'SFT loss on dev at a learning rate; the least of a method is bold.',
    f'The least is at an edge of what was tried: {", ".join(edges) or "none"}.', *_about(found)]


def slim(found: Found) -> dict[str, Any]:
  """What is committed of the rows: chief figures, and once what all of them share."""
  shared = tables.common_facts(
    [row[stage] for row in found for stage in kinds.STAGES if stage in row])
  keep = lambda s: {k: v for k, v in s.items() if k.startswith(KEPT)}
  return {**shared, 'rows': [
    {k: keep(v) if isinstance(v, dict) else v for k, v in row.items()} for row in found]}


def _cell(value: Estimate | None, show: str | Callable[[float], str]) -> str:
  if value is None:
    return NONE
  if value.n < 2:
    return show.format(value.mean)
  half = show.replace('**', '').format((value.high - value.low) / 2)
  return f'{show.format(value.mean)} ± {half}'


def _about(found: Found) -> list[str]:
  seeds = sorted({row['seed'] for row in found})
  return [f'Mean over seeds {", ".join(map(str, seeds))} ± half the 95 % t-interval.'] if (
    len(seeds) > 1) else [f'One seed: {seeds}.' if seeds else 'Nothing is finished.']
