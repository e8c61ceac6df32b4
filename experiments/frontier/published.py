"""Sun et al.'s figures (arXiv 2309.09055: LoRA-PPO on LLaMA-7B), and whether ours agree."""

from experiments.frontier import rows
from experiments.statistics import Estimate

WINS = {'lora/none': 48.2, 'lora/kl': 47.6, 'lora/jensen_shannon': 48.7, 'full/kl': 46.7}
"""% of wins at their step 180, read off their figure (± 0.2); full/kl is their full PPO."""

BESIDE = rows.BESIDE['regularizers']


def verdicts(found: rows.Found) -> list[str]:
  """A line for each of their differences to LoRA-PPO with KL that our rows have too."""
  chief, lines = rows.chief_figure(found), []
  for name, wins in WINS.items():
    ours = rows.change(found, name, chief, BESIDE) if name != BESIDE else None
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
