"""Curves of a policy that is optimised against a reward model: gains by the root of the KL.

A curve is a list of points {'step', 'kl', 'reward', 'gold_reward', ...}; its first point is the
anchor. Gold is what is wanted, the proxy what the reward model says of it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import charts
from experiments.charts import SERIES, SMALL, SOFT, TEXT
from experiments.studies import _gold_forms as forms
from experiments.studies._estimates import Estimate, estimate

PROXY, GOLD = 'reward', 'gold_reward'
Curve = Sequence[Mapping[str, float]]
Families = Mapping[str, Mapping[str, Sequence[Curve]]]
"""{title of a panel: {reward model: its curves, a seed each}}."""


def gains(curve: Curve) -> list[dict[str, float]]:
  """{'step', 'd', 'reward', 'gold_reward'}: d = sqrt KL; both rewards as gains over the anchor's.

  An estimate of KL may fall below 0 by chance.
  """
  first = curve[0]
  return [{'step': p['step'], 'd': max(p['kl'], 0.0) ** 0.5,
           **{name: p[name] - first[name] for name in (PROXY, GOLD)}} for p in curve]


def over_seeds(curves: Sequence[Curve]) -> list[dict[str, Any]]:
  """The `gains` of several seeds in one: by step the mean d, and an Estimate of each reward.

  Steps that not every seed has are left out.
  """
  by_step = [{p['step']: p for p in curve} for curve in curves]
  steps = [p['step'] for p in curves[0] if all(p['step'] in one for one in by_step)]
  column = lambda step, name: [one[step][name] for one in by_step]
  mean = lambda values: sum(values) / len(values)
  return [{'step': s, 'd': mean(column(s, 'd')),
           **{name: estimate(column(s, name)) for name in (PROXY, GOLD)}} for s in steps]


def fall(curves: Sequence[Curve]) -> tuple[dict[str, Any], Estimate]:
  """(the point of `over_seeds` with the highest gold reward, what gold loses from it to the end).

  The highest of noisy points is high by chance too, and so is the loss, by a little.
  """
  top = max(over_seeds(curves), key=lambda p: p[GOLD].mean)
  at = lambda curve, step: next(p[GOLD] for p in curve if p['step'] == step)
  return top, estimate([at(curve, top['step']) - curve[-1][GOLD] for curve in curves])


def fitted(kind: str, curves: Sequence[Curve]) -> forms.Fit | None:
  """Gao et al.'s form over the points of all seeds."""
  points = [p for curve in curves for p in curve]
  return forms.fit(kind, [p['d'] for p in points], [p[GOLD] for p in points])


def draw(kinds: Mapping[str, Families], file: str) -> None:
  """A row a kind of optimisation, a column a family of reward models: gold, proxy and the form.

  Gold is on the left axis (solid; dotted: its form), the proxy, in units of its own, on the right
  one. Both are 0 at the anchor. Shaded: the 95 % t-interval of gold over seeds.
  """
  columns = max(map(len, kinds.values()))
  figure, axes = charts.new(1.0 + 3.1 * columns, 6.0, columns, len(kinds))
  for i, (kind, families) in enumerate(kinds.items()):
    row = axes[i * columns:][:columns]
    rights = [axis.twinx() for axis in row]
    for axis, right, (title, judges) in zip(row, rights, families.items()):
      right.sharey(rights[0])
      right.tick_params(labelright=right is rights[-1])
      comparable = sum(map(bool, judges.values())) >= min(2, len(judges))
      for (label, curves), colour in zip(judges.items() if comparable else (), SERIES):
        if curves:
          _curve(axis, right, kind, curves, colour, label)
      _frame(axis, right, title, comparable)
    row[0].set_ylabel('gold (solid; dotted: its form)', fontsize=SMALL, color=SOFT)
    rights[-1].set_ylabel('proxy (dashed)', fontsize=SMALL, color=SOFT)
    _level(row[0], rights[0])
  charts.save(figure, file)


def _curve(axis, right, kind: str, curves: Sequence[Curve], colour: str, label: str) -> None:
  """One reward model's."""
  points = over_seeds(curves)
  d = [p['d'] for p in points]
  axis.plot(d, [p[GOLD].mean for p in points], '-', color=colour, linewidth=1.6, label=label)
  right.plot(d, [p[PROXY].mean for p in points], '--', color=colour, linewidth=1.1)
  if all(math.isfinite(p[GOLD].low) for p in points):
    axis.fill_between(d, [p[GOLD].low for p in points], [p[GOLD].high for p in points],
                      color=colour, alpha=0.12, linewidth=0)
  if form := fitted(kind, curves):
    x = np.linspace(0, max(d), 80)
    axis.plot(x, forms.predicted(kind, form, x), ':', color=colour, linewidth=0.9)


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
