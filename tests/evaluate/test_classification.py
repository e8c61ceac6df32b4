"""Metrics of scores: hand-computed values, and laws."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from perl.evaluate import bootstrap, classification

GROUPS = ['a', 'a', 'b', 'c', 'c', 'd']
SCORES = [2.0, -1.0, 0.5, 0.5, -2.0, 0.0]
LABELS = [1, 0, 1, 0, 0, 1]


def test_accuracy_by_hand():
  # Said 1: rows 0, 2, 3; right: 0, 1, 2, 4. A score of 0 says 0.
  assert classification.accuracy(SCORES, LABELS) == pytest.approx(4 / 6)
  assert classification.balanced_accuracy(SCORES, LABELS) == pytest.approx((2 / 3 + 2 / 3) / 2)
  assert classification.majority_rate([1, 1, 1, 0]) == 0.75


def test_auc_by_hand_with_a_tie():
  # 2 beats 3 zeros; 0.5 beats 2 and ties with 1; 0 beats 2: (3 + 2.5 + 2) / 9.
  assert classification.auc(SCORES, LABELS) == pytest.approx(7.5 / 9)


def test_auc_of_integers_with_many_ties_is_sklearns():
  rng = np.random.default_rng(0)
  scores, labels = rng.integers(0, 5, 200), rng.integers(0, 2, 200)
  expected = sklearn_metrics.roc_auc_score(labels, scores)
  assert classification.auc(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_auc_only_sees_the_order():
  rng = np.random.default_rng(1)
  scores, labels = rng.normal(size=50), rng.integers(0, 2, 50)
  plain = classification.auc(scores, labels)
  assert classification.auc(np.exp(scores) * 7 - 3, labels) == pytest.approx(plain)
  assert classification.auc(-scores, labels) == pytest.approx(1 - plain)


def test_a_single_class_has_no_auc():
  assert np.isnan(classification.auc([1.0, 2.0], [1, 1]))
  assert np.isnan(classification.balanced_accuracy([1.0, 2.0], [0, 0]))


def test_constant_scores_are_chance_whatever_the_imbalance():
  labels = [1] * 9 + [0]
  assert classification.auc(np.ones(10), labels) == 0.5
  assert classification.balanced_accuracy(np.ones(10), labels) == 0.5
  assert classification.accuracy(np.ones(10), labels) == 0.9


def test_calibration_by_hand():
  logit = lambda p: np.log(p / (1 - p))
  scores, labels = logit(np.array([0.12, 0.18, 0.83, 0.87])), [0, 1, 1, 1]
  found = classification.reliability(scores, labels)
  assert [b['count'] for b in found] == [2, 2]
  assert found[0]['predicted'] == pytest.approx(0.15) and found[0]['observed'] == 0.5
  expected = 0.5 * abs(0.5 - 0.15) + 0.5 * abs(1.0 - 0.85)
  assert classification.calibration_error(scores, labels) == pytest.approx(expected)


def test_extreme_scores_are_in_the_outer_bins():
  found = classification.reliability([-1e4, 1e4], [0, 1])
  assert [(b['low'], b['high']) for b in found] == [(0.0, 0.1), (0.9, 1.0)]
  assert classification.log_loss([-1e4, 1e4], [0, 1]) == 0.0


def test_log_loss_at_zero_is_log_two():
  assert classification.log_loss([0.0, 0.0], [0, 1]) == pytest.approx(np.log(2))


def test_pair_accuracy_counts_ties_half():
  assert classification.pair_accuracy([1, 2, 3, 0], [0, 2, 3, 1]) == 0.5


def test_bootstrap_of_equal_groups_has_no_width():
  assert bootstrap.group_bootstrap(np.mean, list('abc'), np.full(3, 2.5), n=50) == (2.5, 2.5)


def test_bootstrap_covers_the_mean_as_the_normal_interval_does():
  values = np.random.default_rng(2).normal(size=400)
  low, high = bootstrap.group_bootstrap(np.mean, np.arange(400), values, n=2000)
  half = 1.96 * values.std() / 20
  assert low == pytest.approx(values.mean() - half, abs=0.02)
  assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_rows_of_a_group_are_drawn_together():
  seen = []
  groups = np.repeat(np.arange(4), 3)
  bootstrap.group_bootstrap(lambda g: seen.append(g) or 0.0, groups, groups, n=20)
  for drawn in seen:
    assert len(drawn) == 12 and not (np.bincount(drawn) % 3).any()


def test_copies_within_a_group_do_not_narrow_the_interval():
  values = np.random.default_rng(3).normal(size=30)
  alone = bootstrap.group_bootstrap(np.mean, np.arange(30), values)
  copied = bootstrap.group_bootstrap(np.mean, np.repeat(np.arange(30), 5), values.repeat(5))
  assert copied == pytest.approx(alone)


def test_degenerate_draws_are_drawn_again_and_counted():
  found = bootstrap.group_replicates(
    classification.auc, ['a', 'b'], [1.0, 0.0], [1, 0], n=100, seed=0
  )
  assert len(found.values) == 100 and set(found.values) == {1.0}
  assert 60 < found.degenerate < 150  # half of the draws hold one group twice
  never = bootstrap.group_replicates(classification.auc, ['a', 'b'], [1.0, 0.0], [1, 1], n=10)
  assert len(never.values) == 0 and never.degenerate == 100
  assert np.isnan(bootstrap.interval(never.values)).all()


def test_same_seed_same_interval():
  arguments = (classification.auc, GROUPS, SCORES, LABELS)
  first, again, other = (
    bootstrap.group_bootstrap(*arguments, n=40, seed=s) for s in (5, 5, 6)
  )
  assert first == again != other


def test_labelled_report_has_the_contracts_names():
  report = classification.labelled_report(SCORES, LABELS, GROUPS, bootstrap=50, seed=0)
  assert {'accuracy', 'balanced_accuracy', 'auc', 'auc_low', 'auc_high', 'loss',
          'calibration_error', 'majority_rate'} <= report.keys()
  assert report['auc_low'] <= report['auc'] <= report['auc_high']
  assert (report['examples'], report['groups']) == (6, 4)
  without = classification.labelled_report(SCORES, LABELS, GROUPS, bootstrap=0)
  assert not any(k.endswith('_low') for k in without) and without['auc'] == report['auc']


def test_preference_report_by_hand():
  report = classification.preference_report([2.0, 0.0], [0.0, 1.0], ['a', 'b'], bootstrap=20)
  assert report['pair_accuracy'] == report['accuracy'] == 0.5
  assert report['margin'] == 0.5
  assert report['loss'] == pytest.approx((np.log1p(np.exp(-2)) + np.log1p(np.exp(1))) / 2)
  assert report['auc'] == pytest.approx((2 + 0.5) / 4)
  assert {'pair_accuracy_low', 'accuracy_high', 'auc_low'} <= report.keys()


def test_ranking_report_by_hand():
  scores = np.array([[2.0, 0.0, 1.0], [1.0, 3.0, np.nan], [np.nan] * 3])
  report = classification.ranking_report(scores, ['a', 'b', 'c'], bootstrap=20)
  assert report['pair_accuracy'] == 0.5  # two of the first one's three pairs, none of the other's
  losses = np.log1p(np.exp([-2.0, -1.0, 1.0]))
  assert report['loss'] == pytest.approx((losses.mean() + np.log1p(np.exp(2.0))) / 2)
  assert (report['examples'], report['pairs'], report['groups']) == (2, 4, 2)
  assert report['pair_accuracy_low'] == 0 and 'auc' not in report


def test_a_ranking_of_two_is_reported_as_a_pair():
  scores = np.random.default_rng(0).normal(size=(20, 2))
  groups = np.arange(20) // 3
  found = classification.ranking_report(scores, groups, bootstrap=20)
  pairs = classification.preference_report(*scores.T, groups, bootstrap=20)
  assert found.pop('pairs') == 20
  assert found == pytest.approx({k: v for k, v in pairs.items() if k[:3] != 'auc'})


@pytest.mark.parametrize('scores, labels, message', [
  ([1.0, np.nan], [1, 0], 'not finite, the first in row 1'),
  ([1.0, 2.0], [1, 0.5], 'expected labels 1'),
  ([1.0], [1, 0], 'as many scores as labels'),
  ([], [], 'at least one'),
])
def test_bad_input_is_named(scores, labels, message):
  with pytest.raises(ValueError, match=message):
    classification.auc(scores, labels)


def test_groups_of_another_length_are_refused():
  with pytest.raises(ValueError, match='one entry for each'):
    bootstrap.group_bootstrap(np.mean, ['a'], [1.0, 2.0])


def test_auc_within_groups_is_that_of_their_own_rows():
  """Two groups rank their rows rightly and wrongly; what lies between groups does not count."""
  scores = [1.0, 0.0, 10.0, 11.0, 5.0]
  labels, groups = [1, 0, 1, 0, 1], ['a', 'a', 'b', 'b', 'of one label']
  assert classification.aucs_within(scores, labels, groups) == {'a': 1.0, 'b': 0.0}
  report = classification.labelled_report(scores, labels, groups, bootstrap=100)
  assert report['auc_within'] == 0.5 and report['groups_within'] == 2
  assert (report['auc_within_low'], report['auc_within_high']) == (0.0, 1.0)
  assert 'auc_within' not in classification.labelled_report(scores, labels, range(5), bootstrap=0)
