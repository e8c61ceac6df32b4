"""Advantages by hand; the cases that went wrong elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl.objectives import advantages, returns

MASK = jnp.asarray([[False, True, True, True], [False, False, True, False]])
ONES = jnp.ones(6)


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_gae_by_hand():
  rewards = jnp.asarray([[9.0, 0.0, 1.0, 2.0], [9.0, 9.0, 3.0, 9.0]])
  values = jnp.asarray([[9.0, 1.0, 2.0, 4.0], [9.0, 9.0, 1.0, 9.0]])
  found, z = advantages.gae(rewards, values, MASK, gamma=0.5, lam=0.5)
  # deltas: 0 + .5 * 2 - 1 = 0;  1 + .5 * 4 - 2 = 1;  2 - 4 = -2
  np.testing.assert_allclose(found, [[0, 0 + 0.25 * 0.5, 1 - 0.25 * 2, -2], [0, 0, 2, 0]])
  np.testing.assert_allclose(z, [[0, 1.125, 2.5, 2], [0, 0, 3, 0]])


def test_gae_of_lambda_1_is_return_minus_value():
  rewards, values = draw(2, 4), draw(2, 4, seed=1)
  found, z = advantages.gae(rewards, values, MASK, gamma=1.0, lam=1.0)
  expected = returns.returns_to_go(rewards, MASK)
  np.testing.assert_allclose(z, expected, atol=1e-6)
  np.testing.assert_allclose(found, jnp.where(MASK, expected - values, 0.0), atol=1e-6)


def test_gae_of_lambda_0_is_the_one_step_error():
  rewards, values = draw(2, 4), draw(2, 4, seed=1)
  found, _ = advantages.gae(rewards, values, MASK, gamma=0.9, lam=0.0)
  expected = rewards[0, 1] + 0.9 * values[0, 2] - values[0, 1]
  np.testing.assert_allclose(found[0, 1], expected, atol=1e-6)
  np.testing.assert_allclose(found[0, 3], rewards[0, 3] - values[0, 3], atol=1e-6)


@pytest.mark.parametrize('garbage', [np.nan, np.inf, 1e30])
def test_garbage_under_the_mask_changes_nothing(garbage):
  rewards, values = draw(2, 4), draw(2, 4, seed=1)
  dirty = [jnp.where(MASK, x, garbage) for x in (rewards, values)]
  for found, clean in zip(advantages.gae(*dirty, MASK), advantages.gae(rewards, values, MASK)):
    np.testing.assert_array_equal(found, clean)
  white = advantages.whitened_returns(dirty[0], MASK)
  np.testing.assert_array_equal(white, advantages.whitened_returns(rewards, MASK))


def test_leave_one_out_by_hand():
  scores = jnp.asarray([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
  found = advantages.leave_one_out(scores, ONES, samples=3)
  np.testing.assert_allclose(found, [1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0])


def test_group_relative_by_hand():
  scores = jnp.asarray([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
  plain = advantages.group_relative(scores, ONES, samples=3, scale='none')
  np.testing.assert_allclose(plain, [-2, -1, 3, 0, 0, 0])
  scaled = advantages.group_relative(scores, ONES, samples=3, eps=0.0)
  np.testing.assert_allclose(scaled[:3], np.asarray([-2, -1, 3]) / np.std([1, 2, 6], ddof=1),
                             rtol=1e-6)


@pytest.mark.parametrize('estimator', [
  advantages.leave_one_out, advantages.group_relative,
  lambda *a, **k: advantages.group_relative(*a, scale='none', **k)])
def test_equal_scores_have_no_advantage_and_no_gradient_that_is_not_a_number(estimator):
  scores = jnp.full(6, 0.3)
  np.testing.assert_allclose(estimator(scores, ONES, samples=3), 0.0, atol=1e-4)
  # 0 / 0 in a deviation would be NaN here, were the advantages ever differentiated.
  assert np.isfinite(estimator(scores, ONES, samples=3)).all()


@pytest.mark.parametrize('estimator', [advantages.leave_one_out, advantages.group_relative])
def test_filler_rows_are_nobodys_baseline(estimator):
  weight = jnp.asarray([1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
  scores = jnp.asarray([1.0, 3.0, np.nan, 2.0, np.inf, 7.0])
  found = estimator(scores, weight, samples=3)
  pair = estimator(jnp.asarray([1.0, 3.0]), jnp.ones(2), samples=2)
  np.testing.assert_allclose(found[:2], pair, rtol=1e-6)
  np.testing.assert_array_equal(found[2:], 0.0)


@pytest.mark.parametrize('estimator', [
  advantages.leave_one_out, advantages.group_relative, advantages.informative])
def test_a_group_of_one_is_refused(estimator):
  with pytest.raises(ValueError, match='expected at least 2 responses to a prompt, found 1'):
    estimator(ONES, ONES, samples=1)


def test_groups_that_differ_are_informative():
  scores = jnp.asarray([0.0, 1.0, 1.0, 1.0, 1.0, 0.0])
  weight = jnp.asarray([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
  np.testing.assert_array_equal(
    advantages.informative(scores, weight, samples=2), [1, 1, 0, 0, 0, 0])
  np.testing.assert_array_equal(
    advantages.informative(scores, jnp.ones(6), samples=2), [1, 1, 0, 0, 1, 1])


def test_leave_one_out_keeps_the_policy_gradient_unbiased():
  """Over all groups of two responses of a policy of three: E A grad log pi = grad E R."""
  theta, reward = draw(3, seed=2), draw(3, seed=3)
  exact = jax.grad(lambda t: (jax.nn.softmax(t) * reward).sum())(theta)
  pi, score = jax.nn.softmax(theta), jax.jacobian(jax.nn.log_softmax)(theta)
  total = jnp.zeros(3)
  for i in range(3):
    for j in range(3):
      a = advantages.leave_one_out(reward[jnp.asarray([i, j])], jnp.ones(2), samples=2)
      total += pi[i] * pi[j] * (a[0] * score[i] + a[1] * score[j]) / 2
  np.testing.assert_allclose(total, exact, atol=1e-6)


def test_an_advantage_is_that_of_each_token():
  found = advantages.per_token(jnp.asarray([2.0, -1.0]), MASK)
  np.testing.assert_array_equal(found, [[0, 2, 2, 2], [0, 0, -1, 0]])


def test_whitened_returns_have_mean_0_and_variance_1_over_tokens():
  white = np.asarray(advantages.whitened_returns(draw(2, 4), MASK))
  np.testing.assert_allclose([white[MASK].mean(), white[MASK].var()], [0, 1], atol=1e-5)
  one = advantages.whitened_returns(draw(1, 1), jnp.ones((1, 1), bool))
  np.testing.assert_array_equal(one, 0.0)
