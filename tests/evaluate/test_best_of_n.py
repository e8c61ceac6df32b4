"""Best-of-n by hand, and against all sets of n."""

import itertools

import numpy as np
import pytest

from perl.evaluate import best_of_n

RNG = np.random.default_rng(0)
PROXY, VALUE = RNG.normal(size=(3, 6)), RNG.normal(size=(3, 6))
LEVEL = np.array([[1.0, 2.0, 2.0, 0.0, 2.0, 1.0], [5.0] * 6])


def enumerated(proxy, value, n):
  """The mean over all sets of n of the preferred one's value, level ones averaged."""
  found = []
  for scores, values in zip(proxy, value):
    sets = [list(s) for s in itertools.combinations(range(len(scores)), n)]
    found.append(np.mean([values[s][scores[s] == scores[s].max()].mean() for s in sets]))
  return found


def test_kl_by_hand():
  assert best_of_n.kl(1) == 0.0
  assert best_of_n.kl(2) == pytest.approx(0.193147, abs=1e-6)  # log 2 - 1 / 2
  assert best_of_n.kl(64) == pytest.approx(3.174508, abs=1e-6)
  with pytest.raises(ValueError, match='at least 1, found 0'):
    best_of_n.kl(0)


def test_weights_by_hand():
  # Of 4 samples in sets of 2, the best is the 2nd of 1, the 3rd of 2, the 4th of 3 of 6 sets.
  proxy, value = np.array([[0.3, 0.1, 0.4, 0.2]]), np.array([[30.0, 10.0, 40.0, 20.0]])
  np.testing.assert_allclose(best_of_n.expected(proxy, value, 2), (20 + 2 * 30 + 3 * 40) / 6)


@pytest.mark.parametrize('n', range(1, 7))
@pytest.mark.parametrize('proxy', [PROXY, LEVEL], ids=['distinct', 'level'])
def test_it_is_the_mean_over_all_sets(proxy, n):
  value = VALUE[: len(proxy)]
  np.testing.assert_allclose(
    best_of_n.expected(proxy, value, n), enumerated(proxy, value, n), rtol=1e-12)


def test_of_one_it_is_the_mean_and_of_all_the_best():
  np.testing.assert_allclose(best_of_n.expected(PROXY, VALUE, 1), VALUE.mean(1))
  best = VALUE[np.arange(3), PROXY.argmax(1)]
  np.testing.assert_allclose(best_of_n.expected(PROXY, VALUE, 6), best)
  np.testing.assert_allclose(best_of_n.expected(LEVEL, VALUE[:2], 6)[0], VALUE[0, [1, 2, 4]].mean())
  rising = [best_of_n.expected(PROXY, PROXY, n).mean() for n in range(1, 7)]
  assert rising == sorted(rising)


def test_many_samples_neither_overflow_nor_lose_weight():
  proxy = RNG.normal(size=(1, 3000))
  np.testing.assert_allclose(best_of_n.expected(proxy, np.ones((1, 3000)), 1500), 1.0)


@pytest.mark.parametrize('proxy, value, n, said', [
  (PROXY, VALUE[:2], 1, 'one shape'), (PROXY, VALUE, 7, 'n from 1 to the 6 samples'),
  (PROXY, VALUE, 0, 'n from 1'), (PROXY * np.nan, VALUE, 1, 'finite scores, found 18')])
def test_what_cannot_be_estimated_is_explained(proxy, value, n, said):
  with pytest.raises(ValueError, match=said):
    best_of_n.expected(proxy, value, n)
