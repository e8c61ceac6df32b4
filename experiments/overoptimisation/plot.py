"""Gao et al.'s figure: gold (solid) and proxy (dashed) against the root of the KL to the anchor."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments import charts
from experiments.charts import SERIES, SMALL, SOFT, TEXT
from experiments.overoptimisation import fits, report
from experiments.overoptimisation import rows as kinds
from experiments.overoptimisation.rows import GOLD, PROXY, Found, Row

NAMES = {'rank': 'rank {}', 'pairs': '{} pairs', 'size': '{}'}
TITLES = {'rank': 'rank of the reward model', 'pairs': 'training pairs', 'size': 'size of its base'}


def draw(found: Found, wanted: Mapping[str, Sequence[Row]], file: str) -> None:
  """A column a family, best-of-n above RL; thin lines are the fitted forms.

  Gold is on the left axis, the proxy, in units of its own, on the right one. Both are 0 at the
  anchor. Shaded: the 95 % t-interval of gold over seeds.
  """
  families = [name for name, family in wanted.items() if family]
  figure, axes = charts.new(1.0 + 3.1 * len(families), 6.0, len(families), len(kinds.KINDS))
  for i, kind in enumerate(kinds.KINDS):
    row = axes[i * len(families):][:len(families)]
    rights = [axis.twinx() for axis in row]
    for axis, right, family in zip(row, rights, families):
      right.sharey(rights[0])
      right.tick_params(labelright=right is rights[-1])
      drawn = _judges(axis, right, kind, found, wanted[family], family)
      _frame(axis, right, f'{report.TITLES[kind]}: {TITLES[family]}', drawn)
    row[0].set_ylabel('gold (solid; dotted: its form)', fontsize=SMALL, color=SOFT)
    rights[-1].set_ylabel('proxy (dashed)', fontsize=SMALL, color=SOFT)
    _level(row[0], rights[0])
  charts.save(figure, file)


def _judges(axis, right, kind: str, found: Found, family: Sequence[Row], name: str) -> bool:
  """The curves of a family's reward models; False where there are none to compare."""
  curves = {judge: [kinds.gains(r[kind]) for r in kinds.of(found, judge) if r.get(kind)]
            for judge in family}
  if sum(map(bool, curves.values())) < min(2, len(family)):
    return False
  for (judge, of_seeds), colour in zip(curves.items(), SERIES):
    if of_seeds:
      _curve(axis, right, kind, of_seeds, colour, NAMES[name].format(getattr(judge, name)))
  return True


def _curve(axis, right, kind: str, curves, colour: str, label: str) -> None:
  """One reward model's."""
  points = kinds.over_seeds(curves)
  d = [p['d'] for p in points]
  axis.plot(d, [p[GOLD].mean for p in points], '-', color=colour, linewidth=1.6, label=label)
  right.plot(d, [p[PROXY].mean for p in points], '--', color=colour, linewidth=1.1)
  if all(math.isfinite(p[GOLD].low) for p in points):
    axis.fill_between(d, [p[GOLD].low for p in points], [p[GOLD].high for p in points],
                      color=colour, alpha=0.12, linewidth=0)
  if form := report.fitted(kind, curves):
    x = np.linspace(0, max(d), 80)
    axis.plot(x, fits.predicted(kind, form, x), ':', color=colour, linewidth=0.9)


def _frame(axis, right, title: str, drawn: bool) -> None:
  axis.set_title(title, fontsize=TEXT, color=SOFT)
  right.spines[['top']].set_visible(False)
  right.tick_params(labelsize=SMALL, colors=SOFT)
  if not drawn:
    axis.text(0.5, 0.5, 'not measured', transform=axis.transAxes, ha='center', fontsize=SMALL,
              color=SOFT)
    axis.set_xticks([])
    return
  axis.set_xlabel('√KL to the anchor, √nats', fontsize=SMALL, color=SOFT)
  axis.set_xlim(left=0)
  axis.set_zorder(right.get_zorder() + 1)  # gold over proxy
  axis.patch.set_visible(False)
  axis.legend(fontsize=SMALL, loc='lower left', framealpha=0.85, edgecolor='none')


def _level(left, right) -> None:
  """The zero of both axes, which is the anchor, at one height."""
  (low, high), top = left.get_ylim(), right.get_ylim()[1]
  if high > 0:
    right.set_ylim(top * low / high, top)
