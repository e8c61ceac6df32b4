"""Metrics of responses, by hand."""

import numpy as np
import pytest

from perl.evaluate import generation

TOKENS = [[5, 6, 5, 6, 5, 6, 2], [7, 2], []]


def test_distinct_by_hand():
  assert generation.distinct(TOKENS, 1) == 4 / 9   # 5 6 2 7 of 7 + 2
  assert generation.distinct(TOKENS, 2) == 4 / 7   # 56 65 62 | 72 of 6 + 1
  assert generation.distinct([[1]], 2) == 0.0


def test_repetition_of_a_loop_is_near_one_and_of_new_words_zero():
  assert generation.repetition([[1] * 104]) == pytest.approx(1 - 1 / 101)
  assert generation.repetition([list(range(50)), [1, 2]]) == 0.0
  # 4-grams of the first: 5656 6565 5656 6562, one of four again; the others have none.
  assert generation.repetition(TOKENS) == pytest.approx(0.25 / 3)


def test_summary_by_hand():
  values = {'reward': [1.0, 2.0, 6.0], 'exact_match': [1.0, np.nan, 0.0], 'kl': [np.nan] * 3}
  report = generation.summarize(TOKENS, [True, True, False], values, list('abc'), bootstrap=50)
  assert report['reward'] == 3.0 and report['exact_match'] == 0.5
  assert report['response_tokens'] == 3.0 and report['finished'] == pytest.approx(2 / 3)
  assert report['reward_low'] < 3.0 < report['reward_high']
  assert 'kl' not in report and report['responses'] == 3


def test_summary_without_intervals():
  report = generation.summarize(TOKENS, [1, 1, 0], {'reward': [0, 0, 0]}, list('abc'), bootstrap=0)
  assert not any(name.endswith(('_low', '_high')) for name in report)


def test_a_wrong_number_of_values_is_named():
  with pytest.raises(ValueError, match='reward .* 3 responses'):
    generation.summarize(TOKENS, [1, 1, 0], {'reward': [0.0]}, list('abc'))


def test_change_is_paired():
  before = np.random.default_rng(0).normal(size=50) * 100
  found = generation.change(before, before + 1, np.arange(50), bootstrap=50)
  assert found['change'] == pytest.approx(1) and found['change_low'] == pytest.approx(1)


def test_spread_shows_losses_and_gains():
  before, after = np.zeros(5), np.array([0.1, -2.0, 3.0, np.nan, 1.0])
  assert generation.spread(before, after, 3) == [1, 0, 2]
  assert generation.spread(before, after, 9) == [1, 3, 0, 4, 2]
  assert generation.spread([], [], 3) == []


def test_monitors_by_hand():
  found = generation.monitors(TOKENS, [True, True, False], [-3.0, -1.5, 0.0])
  assert found == {
    'response_tokens': 3.0, 'finished': pytest.approx(2 / 3), 'entropy': 0.5,  # 4.5 nats, 9 tokens
    'repetition': pytest.approx(0.25 / 3), 'distinct_2': 4 / 7}
