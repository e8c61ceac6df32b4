"""The study in a table and in JSON; every sentence is computed from the rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.overoptimisation import fits
from experiments.overoptimisation import rows as kinds
from experiments.overoptimisation.rows import GOLD, PROXY, Found, Row
from experiments.statistics import estimate, show

NONE = '–'
TITLES = {'best_of_n': 'best of n', 'rl': 'RL'}
Wanted = Mapping[str, Sequence[Row]]


def table(found: Found, wanted: Wanted) -> tuple[list[str], list[list[str]], list[str]]:
  """A line a reward model and way of optimising: where gold peaks and ends, and the fitted form."""
  head = ['reward model', 'pair accuracy', 'optimised by', 'gold, most', 'at √KL', 'gold, end',
          'at √KL', 'proxy, end', 'α', 'β', 'residual', 'R²']
  body = []
  for row in every(wanted):
    of_row = kinds.of(found, row)
    accuracy = show(estimate([r['reward'].get('pair_accuracy') for r in of_row]), 3)
    for kind in kinds.KINDS:
      if curves := [kinds.gains(r[kind]) for r in of_row if r.get(kind)]:
        body.append([describe(row), accuracy, TITLES[kind], *_line(kind, curves)])
  return head, body, [*_notes(found, wanted)]


def _line(kind: str, curves: Sequence[Sequence[Mapping[str, float]]]) -> list[str]:
  top, _ = kinds.fall(curves)
  end, form = kinds.over_seeds(curves)[-1], fitted(kind, curves)
  shown = [f'{x:.3f}' for x in form[:4]] if form else [NONE] * 4
  return [show(top[GOLD], 3, '+'), f'{top["d"]:.2f}', show(end[GOLD], 3, '+'), f'{end["d"]:.2f}',
          show(end[PROXY], 2, '+'), *shown]


def every(wanted: Wanted) -> list[Row]:
  """The rows of all families, each once."""
  return list(dict.fromkeys(row for family in wanted.values() for row in family))


def describe(row: Row) -> str:
  """'micro, rank 8, 500 pairs'."""
  return f'{row.size}, rank {row.rank}, {row.pairs or "all"} pairs'


def fitted(kind: str, curves: Sequence[Sequence[Mapping[str, float]]]) -> fits.Fit | None:
  """The form over the points of all seeds."""
  points = [p for curve in curves for p in curve]
  return fits.fit(kind, [p['d'] for p in points], [p[GOLD] for p in points])


def _notes(found: Found, wanted: Wanted) -> list[str]:
  seeds = sorted({row['seed'] for row in found})
  notes = [
    'Gold and proxy are gains over the anchor, in their own units. √KL in root nats; of best-of-n '
    'the analytic one. Forms: best of n R = d (α - β d), RL R = d (α - β log d), d = √KL; residual '
    'is the root mean square, in units of gold.',
    f'Mean over seeds {", ".join(map(str, seeds))} ± half the 95 % t-interval.'
    if len(seeds) > 1 else f'One seed: {seeds}.' if seeds else 'Nothing is finished.']
  for kind in kinds.KINDS:
    falls, total = [], 0
    for row in every(wanted):
      curves = [kinds.gains(r[kind]) for r in kinds.of(found, row) if r.get(kind)]
      if len(curves) < 2:
        continue
      total += 1
      loss = kinds.fall(curves)[1]
      if loss.low > 0:
        falls.append(f'{describe(row)} by {loss.mean:.3f}')
    if total:
      notes.append(f'{TITLES[kind]}: gold falls from its highest point to the end (95 % t-interval '
                   f'of the loss without 0) for {len(falls)} of {total} reward models: '
                   f'{"; ".join(falls) or "none"}.')
  return notes


def results(found: Found, wanted: Wanted) -> dict[str, Any]:
  """What is committed: where it comes from, the rows with their curves, and the fits."""
  from perl.train import provenance  # may load jax, which must follow platform.tune

  forms = [
    {**row._asdict(), 'kind': kind, **form._asdict(), 'peak': finite(fits.peak(kind, form))}
    for row in every(wanted) for kind in kinds.KINDS
    if (curves := [kinds.gains(r[kind]) for r in kinds.of(found, row) if r.get(kind)])
    and (form := fitted(kind, curves))]
  return {**provenance.record(), 'seeds': sorted({row['seed'] for row in found}),
          'families': {name: [row.name for row in family] for name, family in wanted.items()},
          'fits': forms, 'rows': list(found)}


def finite(value: float) -> float | None:
  """The value, or None, for JSON knows no infinity."""
  return value if abs(value) < float('inf') else None
