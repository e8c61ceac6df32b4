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
  rights = [axis.twinx() for axis in axes]
  for i, (axis, right) in enumerate(zip(axes, rights)):
    row, column = divmod(i, len(families))
    kind, family = kinds.KINDS[row], families[column]
    right.sharey(rights[row * len(families)])
    for judge, colour in zip(wanted[family], SERIES):
      curves = [kinds.gains(r[kind]) for r in kinds.of(found, judge) if r.get(kind)]
      if curves:
        _curve(axis, right, kind, curves, colour, NAMES[family].format(getattr(judge, family)))
    _frame(axis, right, f'{report.TITLES[kind]}: {TITLES[family]}')
    axis.set_ylabel('' if column else 'gold (solid; dotted: its form)', fontsize=SMALL, color=SOFT)
    last = column == len(families) - 1
    right.set_ylabel('proxy (dashed)' if last else '', fontsize=SMALL, color=SOFT)
    right.tick_params(labelright=last)
  charts.save(figure, file)


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


def _frame(axis, right, title: str) -> None:
  axis.set_title(title, fontsize=TEXT, color=SOFT)
  axis.set_xlabel('√KL to the anchor, √nats', fontsize=SMALL, color=SOFT)
  axis.set_xlim(left=0)
  axis.set_zorder(right.get_zorder() + 1)  # gold over proxy
  axis.patch.set_visible(False)
  right.spines[['top']].set_visible(False)
  right.tick_params(labelsize=SMALL, colors=SOFT)
  if axis.get_legend_handles_labels()[0]:
    axis.legend(frameon=False, fontsize=SMALL, loc='best')
