"""How well scores foretell ratings: pure functions of arrays, N rows throughout."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from perl.evaluate.bootstrap import finite, with_intervals


def mean_squared_error(scores: Sequence[float], ratings: Sequence[float]) -> float:
  """Mean of (s - y)^2."""
  return float(np.square(np.asarray(scores) - np.asarray(ratings)).mean())


def pearson(scores: Sequence[float], ratings: Sequence[float]) -> float:
  """Cov(s, y) / (std(s) std(y)); NaN where either is constant."""
  if not np.ptp(scores) or not np.ptp(ratings):
    return float('nan')
  return float(np.corrcoef(scores, ratings)[0, 1])


def spearman(scores: Sequence[float], ratings: Sequence[float]) -> float:
  """`pearson` of the ranks, ties at their mean rank: 1 where scores and ratings have one order."""
  return pearson(rankdata(scores), rankdata(ratings))


def rated_report(
  scores: Sequence[float], ratings: Sequence[float], groups: Sequence, bootstrap: int = 1000,
  seed: int = 0,
) -> dict[str, float | int]:
  """All that there is to say of scores against ratings.

  Args:
    scores: [N].
    ratings: [N], real numbers.
    groups, bootstrap, seed: see `classification.labelled_report`.

  Returns:
    mean_squared_error, pearson, spearman (each with _low and _high, 95 %), loss (half the squared
    error, losses.regression), rating_variance (the error of the ratings' own mean, a constant);
    the counts (ints) examples, groups and degenerate_replicates (constant draws, drawn again).

  Raises:
    ValueError: a number that is not finite, no rows, unequal lengths.
  """
  scores, ratings = finite('scores', scores), finite('ratings', ratings)
  if len(scores) != len(ratings):
    raise ValueError(f'expected as many scores as ratings, found {len(scores)} and {len(ratings)}')
  statistics = {
    'mean_squared_error': mean_squared_error, 'pearson': pearson, 'spearman': spearman}
  return {
    **with_intervals(statistics, groups, (scores, ratings), bootstrap, seed),
    'loss': mean_squared_error(scores, ratings) / 2,
    'rating_variance': float(ratings.var()),
    'examples': len(ratings),
    'groups': len(set(groups)),
  }
