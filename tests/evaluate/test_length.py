"""The share of a reward gain that is length, on data whose share is known."""

import math

import numpy as np
import pytest

from perl.evaluate import length

RNG = np.random.default_rng(0)
SHORT = RNG.integers(5, 100, 4000)
GROUPS = np.arange(len(SHORT))


def shares(before, after, old, new):
  report = length.report(before, after, old, new, GROUPS[:len(before)], bootstrap=0)
  return report, (report['share_by_bins'], report['share_by_slope'])


def test_a_policy_that_only_became_longer_gained_by_length_alone():
  longer = RNG.permutation(SHORT) + 40
  report, both = shares(0.05 * SHORT, 0.05 * longer, SHORT, longer)
  assert report['gain'] == pytest.approx(0.05 * 40) and report['longer'] == pytest.approx(40)
  assert both[1] == pytest.approx(1.0)  # the slope is exact
  assert both[0] == pytest.approx(1.0, abs=0.05)  # within a bin lengths still differ a little


def test_a_policy_of_the_same_lengths_gained_nothing_by_them():
  same = RNG.permutation(SHORT)
  report, both = shares(0.05 * SHORT, 0.05 * same + 3, SHORT, same)
  assert both == pytest.approx((0.0, 0.0), abs=1e-2) and report['covered'] == 1.0
  assert report['gain_within'] == pytest.approx(3.0, abs=1e-2)


def test_half_and_half():
  longer = RNG.permutation(SHORT) + 40
  _, both = shares(0.05 * SHORT, 0.05 * longer + 2, SHORT, longer)
  assert both == pytest.approx((0.5, 0.5), abs=0.03)


def test_a_reward_that_does_not_read_length_gains_within_it():
  """Longer it became as well: that says nothing where length is worth nothing."""
  noise, longer = RNG.normal(size=len(SHORT)), RNG.permutation(SHORT) + 40
  _, both = shares(noise, RNG.permutation(noise) + 2, SHORT, longer)
  assert both == pytest.approx((0.0, 0.0), abs=0.05)


def test_edges_are_no_numbers():
  one = np.ones(3)
  report, both = shares(one, one, one, 100 * one)  # no gain, no bin of both, no slope
  assert all(map(math.isnan, both)) and math.isnan(report['gain_within'])
  assert report['covered'] == 0.0
  assert length.report([math.nan], [1.0], [1], [2], ['a']) == {}


def test_what_is_not_judged_is_left_out_and_intervals_hold_the_mean():
  before, after = RNG.normal(size=60), RNG.normal(size=60) + 1
  before[:10] = math.nan
  report = length.report(before, after, SHORT[:60], SHORT[60:120], GROUPS[:60], bootstrap=50)
  assert report['responses'] == 50
  assert report['gain_low'] < report['gain'] < report['gain_high']
