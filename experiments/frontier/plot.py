"""Rewards against KL, a curve a row: where training goes, and what it costs in KL."""

import math

from experiments import charts
from experiments.charts import SMALL, SOFT, TEXT
from experiments.frontier import rows

LINES = ('-', '--', ':', '-.')


def frontier(found: rows.Found, file: str) -> None:
  """Gold reward (where there is one) and reward against sqrt KL, means over seeds by evaluation."""
  panels = [figure for figure in ('gold_reward', 'reward')
            if any(figure in point for row in found['rows'] for point in row['curve'])]
  figure, axes = charts.new(4.6 * len(panels) + 2.2, 4.6, len(panels), shared=False)
  names = rows.names(found)
  for axis, panel in zip(axes, panels):
    for i, name in enumerate(names):
      path = mean_path(found, name, panel)
      axis.plot(*zip(*path), LINES[i // 10 % len(LINES)], color=f'C{i % 10}', marker='o',
                markersize=2.5, linewidth=1.1, label=name)
    axis.set_title(f'{panel.replace("_", " ")}, dev', fontsize=TEXT, color=SOFT)
    axis.set_xlabel('√KL to the anchor, √nats', fontsize=SMALL)
  axes[-1].legend(frameon=False, fontsize=SMALL - 1, loc='center left', bbox_to_anchor=(1.0, 0.5))
  charts.save(figure, file)


def mean_path(found: rows.Found, name: str, figure: str) -> list[tuple[float, float]]:
  """(sqrt of the mean KL, the mean figure) over seeds, at each evaluated step."""
  points: dict[int, list[tuple[float, float]]] = {}
  for row in found['rows']:
    if row['name'] == name:
      for point in row['curve']:
        points.setdefault(point['step'], []).append((point['kl'], point[figure]))
  mean = lambda values: math.fsum(values) / len(values)
  # A sampled KL may fall below 0 by chance.
  return [(math.sqrt(max(mean([kl for kl, _ in of_step]), 0.0)), mean([y for _, y in of_step]))
          for _, of_step in sorted(points.items())]
