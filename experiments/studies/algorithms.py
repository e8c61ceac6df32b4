r"""Every RL algorithm at one budget of samples, over seeds: rewards against KL.

    python -m experiments.studies algorithms --config=configs/demo.py --workdir=runs/frontier \
        --seeds=0,1,2 --json=experiments/results/toy_algorithms.json \
        --plot=experiments/results/toy_algorithms.png

Each at its own options, and REINFORCE with each baseline. Folders: see _frontier.py, which
`regularizers` may share.
"""

from collections.abc import Mapping
from typing import Any

from experiments.studies import _frontier as frontier
from experiments.studies._engine import Table
from experiments.studies._jobs import Row
from perl import choices

BASELINES = ('batch_mean', 'leave_one_out', 'moving_average')
"""Of REINFORCE, beside its own, the learnt value."""

add_flags, plot = frontier.add_flags, frontier.plot


def rows() -> list[Row]:
  """Every file of perl/rl/algorithms, and REINFORCE with each baseline."""
  variants = [Row(name, fields={'rl.algorithm': name})
              for name in choices.names('perl.rl.algorithms')]
  for baseline in BASELINES:
    samples = {'rl.samples': 4} if baseline == 'leave_one_out' else {}
    variants.append(Row(f'reinforce/{baseline}', fields={
      'rl.algorithm': 'reinforce', 'rl.baseline': baseline, **samples}))
  return sorted(variants, key=lambda row: row.name)


phases, collect = frontier.study(rows)


def table(results: Mapping[str, Any]) -> Table:
  """A row a variant, from the largest reward; what surely differs from REINFORCE."""
  return *frontier.lines(results), frontier.notes(results, 'reinforce')
