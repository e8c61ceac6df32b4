"""Means over seeds with t-intervals, and what differences of a seed say."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean over n seeds with its 95 % t-interval; low and high are NaN for a single seed."""

  mean: float
  low: float
  high: float
  n: int


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate | None:
  """mean -+ t_(n - 1) s / sqrt(n), s with n - 1 in its denominator; None without finite values."""
  values = [v for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
  n = len(values)
  if not n:
    return None
  mean = math.fsum(values) / n
  if n == 1:
    return Estimate(mean, math.nan, math.nan, 1)
  deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
  half = float(stats.t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n)
  return Estimate(mean, mean - half, mean + half, n)


def show(value: Estimate | None, digits: int, sign: str = '') -> str:
  """'0.71 ± 0.02', the latter half the interval, left out for a single seed; '–' for none.

  Args:
    value: an estimate.
    digits: behind the point.
    sign: '+' shows that of a mean above 0 too.
  """
  if value is None:
    return '–'
  mean = f'{round(value.mean, digits) + 0.0:{sign}.{digits}f}'  # + 0.0: no -0.00
  return mean if value.n < 2 else f'{mean} ± {(value.high - value.low) / 2:.{digits}f}'


def within(value: float, interval: Estimate) -> str:
  """'yes', 'no, above it', 'no, below it'; 'unknown' of a single seed, which has no interval."""
  if interval.n < 2:
    return 'unknown'
  if value > interval.high:
    return 'no, above it'
  return 'yes' if value >= interval.low else 'no, below it'


def sign(change: Estimate) -> str:
  """'rises' or 'falls' if the interval of a change leaves 0 out; else 'unclear'."""
  if change.n < 2:
    return 'unclear'
  if change.low > 0:
    return 'rises'
  return 'falls' if change.high < 0 else 'unclear'


Rows = Sequence[Mapping[str, Any]]
"""Finished rows: {'seed', stage: its summary, ...}."""


def by_seed(rows: Rows, stage: str, field: str, **which: Any) -> dict[int, float]:
  """{seed: a figure of a stage} of the rows that have it, and have the values of `which`."""
  return {row['seed']: value for row in rows
          if all(row[k] == v for k, v in which.items())
          and isinstance(value := row.get(stage, {}).get(field), (int, float))}


def over_seeds(rows: Rows, stage: str, field: str, **which: Any) -> Estimate | None:
  """The mean of `by_seed` with its interval; None if there is nothing."""
  return estimate(list(by_seed(rows, stage, field, **which).values()))


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
  """The mean of ours less theirs, of `by_seed`, paired by seed; None if they share none."""
  return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def surely(differences: Mapping[str, Estimate | None]) -> dict[str, list[str]]:
  """{'rises' | 'falls' | 'unclear': names}, as `sign` has it; without intervals in none."""
  signs = {name: sign(d) for name, d in differences.items() if d and d.n > 1}
  return {word: [name for name, s in signs.items() if s == word]
          for word in ('rises', 'falls', 'unclear')}


def about(rows: Rows) -> list[str]:
  """What the figures of a table are means of."""
  seeds = sorted({row['seed'] for row in rows})
  if len(seeds) == 1:
    return [f'One seed: {seeds}.']
  return [f'Mean over seeds {", ".join(map(str, seeds))} ± half the 95 % t-interval.']
