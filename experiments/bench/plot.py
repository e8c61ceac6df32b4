"""How many times as long the peers take: bars with their spread over rounds, and the aims.

    python -m experiments.bench.plot --json=speed_tiny.json speed_medium.json --out=speed.png

A bar at 2 is a peer that takes twice our time. A hatched one computed something else than ours.
"""

import json
import statistics
from collections.abc import Sequence

from experiments import charts
from experiments.bench import work
from experiments.charts import INK, SMALL, SOFT, TEXT

COLOURS = dict(zip(('peft', 'trl', 'tunix', 'perl'), charts.SERIES))
"""By the first word of a contestant's name."""


def bars(cases: Sequence[dict]) -> list[dict]:
  """{case, name, ratio, low, high, aim, agrees} of every peer in every case, in their order."""
  rows = []
  for case in cases:
    for name, values in case['ratios'].items():
      rows.append({
        'case': f'{case["suite"]} {case["size"]}', 'name': name,
        'ratio': statistics.median(values), 'low': min(values), 'high': max(values),
        'aim': case.get('aims', {}).get(name), 'agrees': name not in case.get('disagree', ())})
  return rows


def draw(cases: Sequence[dict], file: str) -> None:
  """Writes the chart; its format is the file's suffix (png, svg, pdf).

  Raises:
    ValueError: no contestant ran beside ours.
  """
  rows = bars(cases)
  if not rows:
    raise ValueError('expected ratios to draw, found none; run ours and a peer in one round')
  figure, (axes,) = charts.new(7.5, 0.9 + 0.3 * len(rows))
  for i, bar in enumerate(rows):
    colour = COLOURS.get(bar['name'].split('_')[0], charts.SERIES[0])
    axes.barh(i, bar['ratio'], color=colour, height=0.62,
              hatch=None if bar['agrees'] else '////')
    axes.plot([bar['low'], bar['high']], [i, i], color=INK, linewidth=1.4)
    text = f'{bar["ratio"]:.2f}' + ('' if bar['agrees'] else ', disagrees')
    axes.annotate(text, (max(bar['high'], bar['aim'] or 0), i), (6, 0),
                  textcoords='offset points', va='center', fontsize=SMALL, color=INK)
    if bar['aim']:
      axes.plot(bar['aim'], i, 'D', markersize=5, color=INK, markerfacecolor='white',
                label=None if any(b['aim'] for b in rows[:i]) else 'aim')
  _frame(axes, rows)
  charts.save(figure, file)


def _frame(axes, rows: Sequence[dict]) -> None:
  """Labels, the line at 1, and a rule between cases."""
  axes.axvline(1.0, color=INK, linewidth=1, linestyle='--')
  for i, (one, other) in enumerate(zip(rows, rows[1:])):
    if one['case'] != other['case']:
      axes.axhline(i + 0.5, color=SOFT, linewidth=0.4)
  labels = [f'{bar["case"]}: {bar["name"]}' for bar in rows]
  axes.set_yticks(range(len(rows)), labels, fontsize=SMALL)
  axes.invert_yaxis()
  axes.set_xlim(0, 1.15 * max(max(bar['high'], bar['aim'] or 0, 1.0) for bar in rows))
  axes.set_xlabel('their seconds / ours; median and range over rounds', fontsize=TEXT,
                  color=SOFT)
  if any(bar['aim'] for bar in rows):
    axes.legend(frameon=False, fontsize=SMALL, loc='lower right')


def main() -> None:
  """Draws the cases of several files in one chart."""
  parser = work.parser(__doc__)
  parser.add_argument('--json', nargs='+', required=True, help='files of experiments.bench')
  parser.add_argument('more', nargs='*', help='files after that of --json=FILE')
  parser.add_argument('--out', required=True)
  args = parser.parse_args()
  cases = []
  for file in args.json + args.more:
    with open(file) as stream:
      cases += json.load(stream)['cases']
  draw(cases, args.out)


if __name__ == '__main__':
  main()
