"""Scores against ratings, by hand and against scipy."""

import numpy as np
import pytest
from scipy import stats

from perl.evaluate import regression

SCORES, RATINGS = [1.0, 3.0, 2.0, 8.0], [1.0, 2.0, 4.0, 5.0]
GROUPS = ['a', 'a', 'b', 'c']


def test_errors_and_correlations_by_hand():
  assert regression.mean_squared_error(SCORES, RATINGS) == (0 + 1 + 4 + 9) / 4
  # Deviations (-2.5, -0.5, -1.5, 4.5) and (-2, -1, 1, 2).
  expected = (5 + 0.5 - 1.5 + 9) / np.sqrt((6.25 + 0.25 + 2.25 + 20.25) * 10)
  assert regression.pearson(SCORES, RATINGS) == pytest.approx(expected)
  assert regression.spearman(SCORES, RATINGS) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_rank_correlation_with_ties_is_scipys():
  rng = np.random.default_rng(0)
  scores, ratings = rng.integers(0, 5, (2, 50)).astype(float)
  assert regression.spearman(scores, ratings) == pytest.approx(
    stats.spearmanr(scores, ratings).statistic)


def test_the_order_alone_matters_to_the_rank_correlation():
  assert regression.spearman(np.exp(SCORES), SCORES) == pytest.approx(1)
  assert regression.pearson(np.exp(SCORES), SCORES) < 0.99


def test_a_constant_has_no_correlation():
  assert np.isnan(regression.pearson([0.1] * 3, [1.0, 2.0, 3.0]))
  report = regression.rated_report([0.1] * 4, RATINGS, GROUPS, bootstrap=5)
  assert np.isnan(report['spearman']) and report['degenerate_replicates'] == 50


def test_a_report_has_intervals_and_what_a_constant_would_do():
  report = regression.rated_report(SCORES, RATINGS, GROUPS, bootstrap=50)
  for name in ('mean_squared_error', 'pearson', 'spearman'):
    assert report[f'{name}_low'] <= report[name] <= report[f'{name}_high']
  assert report['loss'] == 3.5 / 2 and report['rating_variance'] == 2.5
  assert (report['examples'], report['groups']) == (4, 3)


@pytest.mark.parametrize('scores, ratings, message', [
  ([1.0, np.nan], [1.0, 2.0], 'expected scores .*not finite, the first in row 1'),
  ([1.0, 2.0], [1.0, np.inf], 'expected ratings .*not finite'),
  ([1.0], [1.0, 2.0], 'as many scores as ratings, found 1 and 2')])
def test_bad_input_is_named(scores, ratings, message):
  with pytest.raises(ValueError, match=message):
    regression.rated_report(scores, ratings, range(len(scores)))
