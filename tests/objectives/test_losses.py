"""Losses by hand and against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl.objectives import losses

MASK = jnp.asarray([[False, True, True], [False, True, False]])


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_next_token_is_the_mean_over_tokens():
  logprobs = jnp.asarray([[7.0, -1.0, -2.0], [7.0, -6.0, 7.0]])
  assert losses.next_token(logprobs, MASK).value() == 3.0
  assert losses.next_token(logprobs, MASK).weight == 3.0


def test_pairwise_by_hand():
  difference = jnp.float32(np.log(3.0))  # sigmoid 3/4
  found = losses.pairwise(jnp.asarray([difference, 0.0]), jnp.asarray([0.0, difference]))
  np.testing.assert_allclose(found, [-np.log(3 / 4), -np.log(1 / 4)], rtol=1e-6)
  margin = losses.pairwise(difference, jnp.float32(0.0), margin=difference)
  np.testing.assert_allclose(margin, np.log(2.0), rtol=1e-6)
  centred = losses.pairwise(jnp.float32(2.0), jnp.float32(1.0), centre=0.1)
  np.testing.assert_allclose(centred, np.log1p(np.exp(-1.0)) + 0.9, rtol=1e-6)


def test_pointwise_by_hand():
  score = np.log(3.0)
  found = losses.pointwise(jnp.full(3, score), jnp.asarray([1.0, 0.0, 0.5]))
  up, down = -np.log(3 / 4), -np.log(1 / 4)
  np.testing.assert_allclose(found, [up, down, (up + down) / 2], rtol=1e-6)


@pytest.mark.parametrize('loss', [
  lambda r: losses.pairwise(r, -r), lambda r: losses.pointwise(r, jnp.float32(0.0)),
  lambda r: losses.pointwise(-r, jnp.float32(1.0)),
])
def test_sure_scores_do_not_overflow(loss):
  score = jnp.float32(1e4)
  assert np.isfinite(loss(score)) and np.isfinite(loss(-score))
  assert np.isfinite(jax.grad(loss)(score)) and np.isfinite(jax.grad(loss)(-score))


def test_reinforce_and_value_by_hand():
  logprobs = jnp.asarray([[9.0, -1.0, -2.0], [9.0, -3.0, 9.0]])
  other = jnp.asarray([[9.0, 0.5, -1.0], [9.0, 2.0, 9.0]])
  np.testing.assert_allclose(losses.reinforce(logprobs, other, MASK).sum(-1), [-1.5, 6.0])
  np.testing.assert_allclose(losses.value(logprobs, other, MASK), [1.5**2 + 1.0, 25.0])


def test_no_gradient_through_advantages_and_returns():
  x, y = draw(2, 3), draw(2, 3, seed=1)
  for loss, target in ((losses.reinforce, 1), (losses.value, 1)):
    grad = jax.grad(lambda a, b, loss=loss: loss(a, b, MASK).sum(), target)(x, y)
    np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize('loss', [losses.reinforce, losses.value])
@pytest.mark.parametrize('garbage', [np.nan, np.inf])
@pytest.mark.parametrize('where', [0, 1])
def test_garbage_under_the_mask_reaches_neither_loss_nor_gradient(loss, garbage, where):
  clean = [draw(2, 3), draw(2, 3, seed=1)]
  dirty = list(clean)
  dirty[where] = jnp.where(MASK, clean[where], garbage)
  run = jax.value_and_grad(lambda a, b: loss(a, b, MASK).sum())
  for found, expected in zip(run(*dirty), run(*clean)):
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('loss', [
  lambda x: losses.next_token(x, MASK).value(),
  lambda x: losses.pairwise(x[0], x[1], 0.3, 0.1).sum(),
  lambda x: losses.pointwise(x[0], jnp.asarray([0.0, 1.0, 0.3])).sum(),
  lambda x: losses.reinforce(x, draw(2, 3, seed=3), MASK).sum(),
  lambda x: losses.value(x, draw(2, 3, seed=3), MASK).sum(),
], ids=['next_token', 'pairwise', 'pointwise', 'reinforce', 'value'])
def test_gradients_are_finite_differences(loss):
  x, direction = draw(2, 3, seed=4), draw(2, 3, seed=5)
  step = 1e-2
  expected = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
  np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(x), direction), expected, rtol=2e-3)


def test_ranking_by_hand():
  """Three responses: the mean over their three pairs; two: `pairwise`; one: nothing to learn."""
  scores = jnp.asarray([[2.0, 1.0, -1.0], [0.5, 0.2, np.nan], [0.7, np.nan, np.nan]])
  present = jnp.asarray([[True] * 3, [True, True, False], [True, False, False]])
  pairs = np.log1p(np.exp(-np.asarray([1.0, 3.0, 2.0])))
  found = losses.ranking(scores, present)
  np.testing.assert_allclose(found[0], pairs.mean(), rtol=1e-6)
  np.testing.assert_allclose(found[1], losses.pairwise(0.5, 0.2), rtol=1e-6)
  assert found[2] == 0.0
  centred = losses.ranking(scores[:2, :2], present[:2, :2], centre=0.1)
  np.testing.assert_allclose(centred[1], losses.pairwise(0.5, 0.2, centre=0.1), rtol=1e-6)
  slope = jax.grad(lambda s: losses.ranking(s, present).sum())(scores)
  assert np.isfinite(slope).all() and (slope[2] == 0).all()


def test_regression_by_hand():
  np.testing.assert_allclose(losses.regression(jnp.float32(3.0), jnp.float32(1.0)), 2.0)
