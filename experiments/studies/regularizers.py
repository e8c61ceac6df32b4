r"""Sun et al.'s ablation (arXiv 2309.09055): PPO with each regularizer, LoRA and full tuning.

    python -m experiments.studies regularizers --config=configs/demo.py --workdir=runs/frontier \
        --seeds=0,1,2 --json=experiments/results/toy_regularizers.json

The regularizer is in the reward. Folders: see _frontier.py, which `algorithms` may share.
"""

from collections.abc import Mapping
from typing import Any

from experiments.studies import _frontier as frontier
from experiments.studies._engine import Table
from experiments.studies._estimates import Estimate
from experiments.studies._jobs import Row

REGULARIZERS = ('none', 'kl', 'clamped_kl', 'jensen_shannon', 'bregman', 'squared_error')
BESIDE = 'lora/kl'
"""The row that others are compared with."""
WINS = {'lora/none': 48.2, 'lora/kl': 47.6, 'lora/jensen_shannon': 48.7, 'full/kl': 46.7}
"""Sun et al.'s % of wins (LoRA-PPO on LLaMA-7B) at their step 180, read off their figure (± 0.2);
full/kl is their full PPO."""

add_flags, plot = frontier.add_flags, frontier.plot


def rows() -> list[Row]:
  """PPO with each regularizer, by LoRA and by full tuning."""
  return [Row(f'{peft}/{name}', peft, {'rl.algorithm': 'ppo', 'rl.regularizer': name,
                                       'rl.regularize': 'reward'})
          for peft in ('lora', 'full') for name in REGULARIZERS]


phases, collect = frontier.study(rows)


def table(results: Mapping[str, Any]) -> Table:
  """A row a variant, from the largest reward; whether the differences are Sun et al.'s."""
  return *frontier.lines(results), [*frontier.notes(results, BESIDE), *verdicts(results)]


def verdicts(results: Mapping[str, Any]) -> list[str]:
  """A line for each of their differences to LoRA-PPO with KL that our rows have too."""
  chief, lines = frontier.chief_figure(results), []
  for name, wins in WINS.items():
    ours = frontier.change(results, name, chief, BESIDE) if name != BESIDE else None
    if ours is not None and ours.n > 1:
      theirs = wins - WINS[BESIDE]
      lines.append(f'Sun et al.: {name} less {BESIDE}, theirs {theirs:+.1f} points of wins; ours '
                   f'{ours.mean:+.3f} [{ours.low:+.3f}, {ours.high:+.3f}] of '
                   f'{chief.replace("_", " ")}: {verdict(theirs, ours)}.')
  return lines


def verdict(theirs: float, ours: Estimate) -> str:
  """Whether a difference of ours has the sign of theirs."""
  if ours.low <= 0 <= ours.high:
    return 'within our noise'
  return 'agrees' if (ours.mean > 0) == (theirs > 0) else 'contradicts theirs'
