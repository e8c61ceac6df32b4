"""Losses of policies on experience: by hand, by finite differences, and as one number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl.objectives import policy
from perl.types import Mean

MASK = jnp.asarray([[False, True, True, True], [False, False, True, False]])


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('level', policy.LEVELS)
def test_ratios_are_1_at_the_first_update_and_outside_the_mask(level):
  logprobs = draw(2, 4)
  np.testing.assert_array_equal(policy.ratios(logprobs, logprobs, MASK, level=level), 1.0)
  dirty = jnp.where(MASK, logprobs, np.nan)
  found = policy.ratios(dirty + 1.0, dirty, MASK, level=level)
  power = MASK.sum(-1, keepdims=True) if level == 'response' else 1
  np.testing.assert_allclose(found, jnp.where(MASK, np.e**power, 1.0), rtol=1e-5)


def test_ratios_by_hand():
  new = jnp.log(jnp.asarray([[1.0, 0.5, 0.2, 0.8], [1.0, 1.0, 0.3, 1.0]]))
  old = jnp.log(jnp.asarray([[1.0, 0.25, 0.1, 0.1], [1.0, 1.0, 0.6, 1.0]]))
  np.testing.assert_allclose(
    policy.ratios(new, old, MASK), [[1, 2, 2, 8], [1, 1, 0.5, 1]], rtol=1e-5)
  geometric = (2 * 2 * 8) ** (1 / 3)
  np.testing.assert_allclose(
    policy.ratios(new, old, MASK, level='sequence'),
    [[1, *[geometric] * 3], [1, 1, 0.5, 1]], rtol=1e-5)
  np.testing.assert_allclose(
    policy.ratios(new, old, MASK, level='response'),
    [[1, 32, 32, 32], [1, 1, 0.5, 1]], rtol=1e-5)
  with pytest.raises(ValueError, match="found 'word'"):
    policy.ratios(new, old, MASK, level='word')


@pytest.mark.parametrize('rho, advantage, loss, stopped', [
  (1.1, 2.0, -2.2, 0), (1.5, 2.0, -2.4, 1), (0.5, 2.0, -1.0, 0),
  (0.5, -2.0, 1.6, 1), (1.5, -2.0, 3.0, 0), (9.0, -2.0, 18.0, 0)])
def test_clipped_by_hand(rho, advantage, loss, stopped):
  rho, advantage = jnp.float32(rho), jnp.float32(advantage)
  np.testing.assert_allclose(policy.clipped(rho, advantage, low=0.2), loss, rtol=1e-6)
  assert policy.clip_fraction(rho, advantage, low=0.2) == stopped
  slope = jax.grad(lambda r: policy.clipped(r, advantage, low=0.2))(rho)
  assert (slope == 0) == bool(stopped)


def test_clip_higher_and_dual_clip_by_hand():
  np.testing.assert_allclose(policy.clipped(1.5, 2.0, low=0.2, high=0.28), -2.56, rtol=1e-6)
  np.testing.assert_allclose(policy.clipped(9.0, -2.0, dual=3.0), 6.0)
  np.testing.assert_allclose(policy.clipped(2.0, -2.0, dual=3.0), 4.0)
  np.testing.assert_allclose(policy.clipped(9.0, 2.0, dual=3.0), -2.4, rtol=1e-6)


def test_cispo_by_hand_and_its_gradient():
  logprobs = jnp.log(jnp.asarray([0.5, 0.5, 0.5]))
  rho, a = jnp.asarray([0.1, 1.1, 5.0]), jnp.asarray([1.0, -1.0, 2.0])
  found = policy.cispo(logprobs, rho, a, high=0.5)
  weight = np.asarray([0.1, -1.1, 3.0])
  np.testing.assert_allclose(found, -weight * np.log(0.5), rtol=1e-5)
  slope = jax.grad(lambda l: policy.cispo(l, rho, a, high=0.5).sum())(logprobs)
  np.testing.assert_allclose(slope, -weight, rtol=1e-5)


def test_clipped_value_by_hand():
  found = policy.clipped_value(
    jnp.asarray([1.0, 1.0, 0.1]), jnp.asarray([0.0, 0.0, 0.0]), jnp.asarray([1.0, 2.0, 0.0]))
  # bounded to 0.2, 0.2, 0.1
  np.testing.assert_allclose(found, [0.8**2 / 2, 1.8**2 / 2, 0.1**2 / 2], rtol=1e-5)
  plain = policy.clipped_value(jnp.float32(1.0), jnp.float32(0.0), jnp.float32(3.0), clip=None)
  np.testing.assert_allclose(plain, 2.0)


def test_no_gradient_through_advantages_old_logprobs_returns_and_old_values():
  x, y, z = (draw(3, seed=i) for i in range(3))
  ones = jnp.ones((1, 3), bool)
  for grad in (
    jax.grad(lambda a: policy.clipped(jnp.exp(x), a).sum())(y),
    jax.grad(lambda a: policy.cispo(x, jnp.exp(x), a, high=0.2).sum())(y),
    jax.grad(lambda r: policy.cispo(x, r, y, high=0.2).sum())(jnp.exp(x)),
    jax.grad(lambda old: policy.ratios(x[None], old[None], ones).sum())(y),
    jax.grad(lambda old: policy.clipped_value(x, old, z).sum())(y),
    jax.grad(lambda r: policy.clipped_value(x, y, r).sum())(z),
  ):
    np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize('level', policy.LEVELS)
def test_gradients_are_those_of_finite_differences(level):
  new, old, a = draw(2, 4), draw(2, 4) + 0.1 * draw(2, 4, seed=1), draw(2, 4, seed=2)

  def loss(new):
    rho = policy.ratios(new, old, MASK, level=level)
    return policy.aggregate(
      policy.clipped(rho, a), MASK, jnp.ones(2), how='sequence').value()

  found = jax.grad(loss)(new)
  for i, j in ((0, 1), (0, 2), (1, 2), (1, 0)):
    step = 1e-2
    numeric = (loss(new.at[i, j].add(step)) - loss(new.at[i, j].add(-step))) / (2 * step)
    np.testing.assert_allclose(found[i, j], numeric, atol=2e-3)


@pytest.mark.parametrize('how, expected', [
  ('token', (1 + 2 + 3 + 10) / 4), ('sequence', (2 + 10) / 2), ('sequence_sum', (6 + 10) / 2),
  ('constant', (6 + 10) / 2 / 5)])
def test_aggregations_by_hand(how, expected):
  losses = jnp.asarray([[np.nan, 1.0, 2.0, 3.0], [np.nan, np.nan, 10.0, np.nan]])
  found = policy.aggregate(losses, MASK, jnp.ones(2), how=how, tokens=5)
  np.testing.assert_allclose(found.value(), expected, rtol=1e-6)
  filled = policy.aggregate(
    jnp.concatenate([losses, losses * np.nan]), jnp.concatenate([MASK, MASK]),
    jnp.asarray([1.0, 1.0, 0.0, 0.0]), how=how, tokens=5)
  np.testing.assert_allclose(filled.value(), expected, rtol=1e-6)


@pytest.mark.parametrize('how', policy.AGGREGATIONS)
def test_microbatches_add_up_to_the_batch(how):
  losses = draw(2, 4)
  whole = policy.aggregate(losses, MASK, jnp.ones(2), how=how, tokens=4)
  rows = [policy.aggregate(losses[i:i + 1], MASK[i:i + 1], jnp.ones(1), how=how, tokens=4)
          for i in range(2)]
  added = rows[0] + rows[1]
  assert isinstance(added, Mean)
  np.testing.assert_allclose(added.value(), whole.value(), rtol=1e-6)


def test_aggregations_are_named():
  with pytest.raises(ValueError, match="expected an aggregation among token, .*found 'mean'"):
    policy.aggregate(draw(2, 4), MASK, jnp.ones(2), how='mean')
  with pytest.raises(ValueError, match='longest response to divide by, found 0'):
    policy.aggregate(draw(2, 4), MASK, jnp.ones(2), how='constant')


def test_the_overlong_penalty_by_hand():
  found = policy.overlong_penalty(jnp.asarray([1, 80, 85, 95, 100, 140]), longest=100, buffer=20)
  np.testing.assert_allclose(found, [0, 0, -0.25, -0.75, -1, -1])
