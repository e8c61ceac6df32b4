"""Group-bootstrap intervals: rows that share a group are drawn together, for they are not apart.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile intervals),
with groups in place of rows as the units that are drawn.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Statistic = Callable[..., float]
"""Of one or more arrays with one entry a row; NaN where it is not defined."""


@dataclasses.dataclass(frozen=True)
class Replicates:
  """The statistic on resamples of the groups."""

  values: np.ndarray  # f64[n], all of them finite; fewer than asked for if too many were degenerate
  degenerate: int  # draws on which the statistic was not defined, and which were drawn again


def group_replicates(
  statistic: Statistic, groups: Sequence, *arrays: Sequence, n: int = 1000, seed: int = 0
) -> Replicates:
  """Draws as many groups as there are, with replacement, n times, and takes the statistic.

  A degenerate draw (NaN, as the AUC of a single class) is drawn again and counted, up to
  10 n in all.

  Args:
    statistic: of the arrays, cut to the rows of a draw.
    groups: [N], equal entries belong together.
    *arrays: each [N].
    n: replicates.
    seed: of the draws; the same groups and seed draw the same rows whatever the statistic.

  Raises:
    ValueError: no rows, or arrays of other lengths than groups.
  """
  groups, arrays = np.asarray(groups), [np.asarray(a) for a in arrays]
  _check_lengths(groups, arrays)
  inverse = np.unique(groups, return_inverse=True)[1]
  rows = np.split(np.argsort(inverse, kind='stable'), np.cumsum(np.bincount(inverse))[:-1])
  rng = np.random.default_rng(seed)
  values, degenerate = [], 0
  while len(values) < n and degenerate < 10 * n:
    drawn = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
    value = float(statistic(*(a[drawn] for a in arrays)))
    if np.isfinite(value):
      values.append(value)
    else:
      degenerate += 1
  return Replicates(np.array(values, np.float64), degenerate)


def group_bootstrap(
  statistic: Statistic, groups: Sequence, *arrays: Sequence, n: int = 1000, seed: int = 0,
  level: float = 0.95,
) -> tuple[float, float]:
  """(low, high): the percentile interval of `group_replicates`; NaN if no draw was defined.

  Args:
    statistic, groups, *arrays, n, seed: see `group_replicates`.
    level: the interval's coverage.
  """
  return interval(group_replicates(statistic, groups, *arrays, n=n, seed=seed).values, level)


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
  """(low, high) percentiles that leave (1 - level) / 2 outside on either side; NaN of nothing."""
  if not len(values):
    return float('nan'), float('nan')
  low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def with_intervals(
  statistics: dict[str, Statistic], groups: Sequence, arrays: Sequence, n: int, seed: int
) -> dict[str, float | int]:
  """{name, name_low, name_high, ..., degenerate_replicates (the largest count of a statistic)}.

  Args:
    statistics: by name.
    groups, arrays, seed: see `group_replicates`.
    n: replicates; 0 leaves the intervals out.
  """
  report: dict[str, float | int] = {name: f(*arrays) for name, f in statistics.items()}
  if not n:
    return report
  degenerate = 0
  for name, statistic in statistics.items():
    replicates = group_replicates(statistic, groups, *arrays, n=n, seed=seed)
    degenerate = max(degenerate, replicates.degenerate)
    report[f'{name}_low'], report[f'{name}_high'] = interval(replicates.values)
  return {**report, 'degenerate_replicates': degenerate}


def finite(name: str, values: Sequence[float]) -> np.ndarray:
  """f64[N]; raises ValueError unless there is one finite number a row, and a row."""
  values = np.asarray(values, np.float64)
  bad = np.flatnonzero(~np.isfinite(values))
  if values.ndim != 1 or not len(values) or len(bad):
    found = f'{len(bad)} not finite, the first in row {bad[0]}' if len(bad) else values.shape
    raise ValueError(f'expected {name} as one finite number a row, at least one row, found '
                     f'{found}; leave out rows without a score')
  return values


def _check_lengths(groups: np.ndarray, arrays: Sequence[np.ndarray]) -> None:
  lengths = [len(a) for a in arrays]
  if not len(groups) or any(length != len(groups) for length in lengths):
    raise ValueError(
      f'expected arrays with one entry for each of the rows that have a group, at least one, found '
      f'{len(groups)} groups and lengths {lengths}; pass the same rows everywhere')
