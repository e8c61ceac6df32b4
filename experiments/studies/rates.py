r"""SFT of every method at several times its learning rates (perl/config/rates.py), by dev loss.

    python -m experiments.studies rates --config=configs/coffee_methods.py:size=tiny \
        --workdir=runs/compare --seeds=0 --json=experiments/results/coffee_rates.json

Folders: see _supervised.py; `methods` and `grid` may share them.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from experiments.studies import _jobs as jobs
from experiments.studies import _supervised as supervised
from experiments.studies._engine import Table
from experiments.studies._estimates import about, over_seeds, show
from experiments.studies._jobs import Row


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Which methods, seeds and factors."""
  jobs.add_methods(parser)
  parser.add_argument('--factors', default='0.3,1,3', help='times the learning rates')
  jobs.add_seeds(parser)


def rows(options: argparse.Namespace) -> list[Row]:
  """Every method at several times its learning rates."""
  return [Row(f'{name}_x{factor:g}', name, {}, factor)
          for name in jobs.methods(options.methods)
          for factor in map(float, options.factors.split(','))]


phases, collect = supervised.study(rows, test=False)


def table(results: Mapping[str, Any]) -> Table:
  """The dev loss of every method at each of its learning rates, the least marked."""
  records, body, edges = results['rows'], [], []
  times = sorted({row['times'] for row in records})
  for name in dict.fromkeys(row['peft'] for row in records):
    losses = [over_seeds(records, 'sft', 'loss', peft=name, times=t) for t in times]
    known = [x.mean for x in losses if x]
    least = min(known, default=None)
    if len(known) > 1 and least in (known[0], known[-1]):
      edges.append(name)
    cells = []
    for t, loss in zip(times, losses):
      mean, sign, half = show(loss, 4).partition(' ± ')
      mean = f'**{mean}**' if loss and loss.mean == least else mean
      rates = [r['learning_rate'] for r in records if (r['peft'], r['times']) == (name, t)]
      cells.append(f'{mean}{sign}{half} at {rates[0]:.3g}' if loss else mean)
    body.append([name, *cells])
  head = ['method', *(f'its rate times {t:g}' for t in times)]
  return head, body, [
    'SFT loss on dev at a learning rate; the least of a method is bold.',
    f'The least is at an edge of what was tried: {", ".join(edges) or "none"}.', *about(records)]
