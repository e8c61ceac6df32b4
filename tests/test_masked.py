"""Masked statistics: by hand, and nothing under the mask matters."""

import jax.numpy as jnp
import numpy as np
import pytest

from perl import masked

X = jnp.asarray([[1.0, 2.0, 6.0, 99.0], [4.0, 99.0, 99.0, 99.0]])
MASK = jnp.asarray([[True, True, True, False], [True, False, False, False]])
GARBAGE = [0.0, -1e30, np.nan, np.inf]


def test_by_hand():
  assert masked.masked_sum(X, MASK) == 13.0
  np.testing.assert_allclose(masked.masked_sum(X, MASK, -1), [9.0, 4.0])
  np.testing.assert_allclose(masked.masked_mean(X, MASK), 13 / 4)
  np.testing.assert_allclose(masked.masked_mean(X, MASK, -1), [3.0, 4.0])
  np.testing.assert_allclose(masked.masked_var(X, MASK, -1), [(4 + 1 + 9) / 3, 0.0])
  np.testing.assert_allclose(masked.masked_var(X, MASK), np.var([1, 2, 6, 4]), rtol=1e-6)


@pytest.mark.parametrize('garbage', GARBAGE)
@pytest.mark.parametrize('function', [
  masked.masked_sum, masked.masked_mean, masked.masked_var, masked.whiten,
  lambda x, m: masked.whiten(x, m, shift_mean=False),
])
def test_garbage_changes_nothing(function, garbage):
  expected = function(X, MASK)
  np.testing.assert_array_equal(function(jnp.where(MASK, X, garbage), MASK), expected)
  assert np.isfinite(expected).all()


def test_whitening_by_hand():
  white = masked.whiten(X, MASK)
  kept = np.asarray([1.0, 2.0, 6.0, 4.0])
  expected = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-8)
  np.testing.assert_allclose(white[MASK], expected, rtol=1e-5)
  np.testing.assert_array_equal(white[~MASK], 0.0)
  kept_mean = masked.whiten(X, MASK, shift_mean=False)[MASK]
  np.testing.assert_allclose(kept_mean, expected + kept.mean(), rtol=1e-5)


def test_one_entry_and_none_give_no_nan():
  one = jnp.zeros((2, 4), bool).at[0, 2].set(True)
  np.testing.assert_array_equal(masked.whiten(X, one), 0.0)
  nothing = jnp.zeros((2, 4), bool)
  for function in (masked.masked_sum, masked.masked_mean, masked.masked_var):
    assert function(X, nothing) == 0.0
  np.testing.assert_array_equal(masked.whiten(X, nothing), 0.0)


def test_integers_are_not_truncated():
  ints = jnp.asarray([[1, 2]])
  assert masked.masked_mean(ints, jnp.ones((1, 2), bool)) == 1.5


def test_last_index_and_positions():
  mask = jnp.asarray([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
  np.testing.assert_array_equal(masked.last_index(mask), [3, 1, 2, 0])
  expected = [[0, 0, 1, 2], [0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(masked.positions(mask), expected)
