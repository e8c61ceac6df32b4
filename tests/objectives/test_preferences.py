"""Preference losses: by hand, by finite differences, and where they are least."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl.objectives import losses, preferences

D = jnp.asarray([0.0, 2.0, -1.5])


def log_sigmoid(x):
  return -np.log1p(np.exp(-np.asarray(x, np.float64)))


def test_the_margin_is_over_the_reference():
  assert preferences.margin(-1.0, -4.0) == 3.0
  assert preferences.margin(-1.0, -4.0, -2.0, -3.0) == 1 - (-1)
  np.testing.assert_allclose(
    preferences.per_token(jnp.asarray([-6.0, 0.0]), jnp.asarray([3, 0])), [-2, 0])


def test_dpo_by_hand():
  np.testing.assert_allclose(preferences.dpo(D, beta=0.5), -log_sigmoid(0.5 * D), rtol=1e-5)
  smooth = -0.9 * log_sigmoid(0.5 * D) - 0.1 * log_sigmoid(-0.5 * D)
  np.testing.assert_allclose(preferences.dpo(D, beta=0.5, smoothing=0.1), smooth, rtol=1e-5)
  np.testing.assert_allclose(preferences.dpo(D[:1], beta=0.1), np.log(2.0), rtol=1e-6)


def test_dpo_is_the_reward_models_loss_of_the_implicit_rewards():
  policy, reference = jnp.asarray([-3.0, -5.0]), jnp.asarray([-4.0, -4.5])
  rewards = 0.3 * (policy - reference)
  d = preferences.margin(policy[0], policy[1], reference[0], reference[1])
  np.testing.assert_allclose(
    preferences.dpo(d, beta=0.3), losses.pairwise(rewards[0], rewards[1]), rtol=1e-6)


def test_ipo_and_hinge_by_hand():
  np.testing.assert_allclose(preferences.ipo(D, beta=0.25), [4.0, 0.0, 3.5**2], rtol=1e-6)
  np.testing.assert_allclose(preferences.hinge(D, beta=0.25), [1.0, 0.5, 1.375])
  np.testing.assert_allclose(preferences.hinge(jnp.asarray([9.0]), beta=0.25), 0.0)


def test_kto_by_hand():
  log_ratio = jnp.asarray([1.0, 1.0])
  found = preferences.kto(log_ratio, jnp.asarray([1.0, 0.0]), jnp.float32(0.5), beta=2.0,
                          undesirable=3.0)
  sigmoid = 1 / (1 + np.exp(-1.0))
  np.testing.assert_allclose(found, [1 - sigmoid, 3 * sigmoid], rtol=1e-5)
  assert preferences.kto_drift(jnp.asarray([-1.0, -3.0])) == 0.0
  assert preferences.kto_drift(jnp.asarray([1.0, 3.0])) == 2.0


def test_kto_has_no_gradient_through_its_drift():
  loss = lambda z: preferences.kto(D, jnp.ones(3), z, beta=0.1).sum()
  assert jax.grad(loss)(jnp.float32(0.3)) == 0.0
  np.testing.assert_array_equal(jax.grad(lambda x: preferences.kto_drift(x))(D), 0.0)


def test_orpo_by_hand():
  chosen, rejected = np.log(0.8), np.log(0.25)
  expected = -chosen - 0.5 * log_sigmoid(np.log(4.0) - np.log(1 / 3))
  found = preferences.orpo(jnp.float32(chosen), jnp.float32(rejected), beta=0.5)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  sure = jax.value_and_grad(lambda x: preferences.orpo(x, jnp.float32(-1.0), beta=0.5))
  assert np.isfinite(sure(jnp.float32(0.0))).all()  # P = 1 has infinite odds


def test_simpo_and_cpo_by_hand():
  chosen, rejected = jnp.float32(-0.5), jnp.float32(-2.0)
  np.testing.assert_allclose(
    preferences.simpo(chosen, rejected, beta=2.0, gamma=1.0), -log_sigmoid(2.0), rtol=1e-5)
  np.testing.assert_allclose(
    preferences.cpo(chosen, rejected, jnp.float32(-0.1), beta=2.0, alpha=3.0),
    -log_sigmoid(3.0) + 0.3, rtol=1e-5)


LOSSES = {
  'dpo': lambda x: preferences.dpo(x, beta=0.7, smoothing=0.1),
  'ipo': lambda x: preferences.ipo(x, beta=0.7),
  'hinge': lambda x: preferences.hinge(x, beta=0.3),
  'kto': lambda x: preferences.kto(x, jnp.ones(3), jnp.float32(0.2), beta=0.7),
  'orpo': lambda x: preferences.orpo(x - 3.0, -x - 4.0, beta=0.7),
  'simpo': lambda x: preferences.simpo(x, -x, beta=0.7, gamma=0.3),
  'cpo': lambda x: preferences.cpo(x, -x, x / 5, beta=0.7),
}


@pytest.mark.parametrize('name', LOSSES)
def test_gradients_are_those_of_finite_differences(name):
  loss, step = LOSSES[name], 1e-2
  numeric = (loss(D + step) - loss(D - step)) / (2 * step)
  found = jax.vmap(jax.grad(lambda x: loss(jnp.full(3, x)).sum() / 3))(D)
  np.testing.assert_allclose(found, numeric, atol=2e-3)


@pytest.mark.parametrize('name', [name for name in LOSSES if name != 'ipo'])
def test_a_larger_margin_is_never_worse(name):
  slope = (LOSSES[name](D + 0.1) - LOSSES[name](D)) / 0.1
  assert (slope <= (0.1 * 0.7 if name == 'dpo' else 0.0)).all()  # smoothing: labels may be wrong


@pytest.mark.parametrize('name', LOSSES)
def test_far_margins_do_not_overflow(name):
  for far in (1e4, -1e4):
    x = jnp.full(3, far) if name != 'orpo' else jnp.full(3, min(far, 2.9))
    value, slope = jax.value_and_grad(lambda x, name=name: LOSSES[name](x).sum())(x)
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_ipo_is_least_at_its_target_and_dpo_with_smoothing_at_its_odds():
  target = 1 / (2 * 0.7)
  assert jax.grad(lambda x: preferences.ipo(x, beta=0.7))(target) == pytest.approx(0.0, abs=1e-6)
  best = np.log(0.9 / 0.1) / 0.7
  slope = jax.grad(lambda x: preferences.dpo(x, beta=0.7, smoothing=0.1))(best)
  assert slope == pytest.approx(0.0, abs=1e-6)
