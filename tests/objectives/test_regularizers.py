"""Divergences from a reference: by hand, by enumeration, and the gradients that they have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl.objectives import regularizers

V = 5
THETA, REFERENCE = (
  jnp.asarray(np.random.default_rng(seed).normal(size=V), jnp.float32) for seed in (0, 1))
PI, PI_REF = (np.asarray(jax.nn.softmax(x), np.float64) for x in (THETA, REFERENCE))
EXACT_KL = float((PI * np.log(PI / PI_REF)).sum())
EXACT_FORWARD = float((PI_REF * np.log(PI_REF / PI)).sum())


@pytest.mark.parametrize('name, expected', [
  ('none', 0.0), ('kl', np.log(2.0)), ('squared_error', np.log(2.0) ** 2 / 2),
  ('bregman', 0.5 - 1 + np.log(2.0)), ('clamped_kl', np.log(2.0)),
  ('jensen_shannon', np.log(0.5 / 0.375) / 2)])
def test_by_hand(name, expected):
  """pi = 1/2, pi_ref = 1/4, m = 3/8."""
  found = regularizers.SAMPLED[name](jnp.log(jnp.asarray([0.5])), jnp.log(jnp.asarray([0.25])))
  np.testing.assert_allclose(found, [expected], rtol=1e-5)


@pytest.mark.parametrize('name, expected', [
  ('clamped_kl', 0.0), ('kl', -np.log(2.0)), ('bregman', 1 - np.log(2.0)),
  ('jensen_shannon', np.log(0.5 / 0.375) / 2)])
def test_by_hand_where_the_reference_is_likelier(name, expected):
  found = regularizers.SAMPLED[name](jnp.log(jnp.asarray([0.25])), jnp.log(jnp.asarray([0.5])))
  np.testing.assert_allclose(found, [expected], rtol=1e-5)


@pytest.mark.parametrize('name', regularizers.SAMPLED)
def test_equal_policies_are_not_penalised(name):
  logprobs = jnp.asarray([-0.3, -7.0, -60.0])
  np.testing.assert_array_equal(regularizers.SAMPLED[name](logprobs, logprobs), 0.0)


def estimate(name):
  """E over a ~ pi of the penalty of a."""
  each = regularizers.SAMPLED[name](jax.nn.log_softmax(THETA), jax.nn.log_softmax(REFERENCE))
  return float((PI * np.asarray(each, np.float64)).sum())


def test_k1_and_k3_are_unbiased_for_the_reverse_kl():
  assert EXACT_KL > 0.05
  np.testing.assert_allclose(estimate('kl'), EXACT_KL, rtol=1e-5)
  np.testing.assert_allclose(estimate('bregman'), EXACT_KL, rtol=1e-5)


def test_exact_divergences():
  found = {name: float(f(THETA, REFERENCE)) for name, f in regularizers.EXACT.items()}
  np.testing.assert_allclose(found['reverse_kl'], EXACT_KL, rtol=1e-5)
  np.testing.assert_allclose(found['forward_kl'], EXACT_FORWARD, rtol=1e-5)
  m = (PI + PI_REF) / 2
  halves = (PI * np.log(PI / m)).sum() + (PI_REF * np.log(PI_REF / m)).sum()
  np.testing.assert_allclose(found['exact_jensen_shannon'], halves / 2, rtol=1e-5)
  apart = jnp.asarray([200.0, 0.0]), jnp.asarray([0.0, 200.0])
  np.testing.assert_allclose(regularizers.exact_jensen_shannon(*apart), np.log(2.0), rtol=1e-6)


@pytest.mark.parametrize('name, divergence', [
  ('kl', None), ('squared_error', 'reverse_kl'), ('bregman', 'forward_kl')])
def test_the_mean_gradient_of_an_estimate_as_a_loss(name, divergence):
  """On policy: E grad k1 = 0, E grad k2 = grad KL(pi || ref), E grad k3 = grad KL(ref || pi)."""
  sampled = jax.lax.stop_gradient(jax.nn.softmax(THETA))

  def loss(theta):
    each = regularizers.SAMPLED[name](jax.nn.log_softmax(theta), jax.nn.log_softmax(REFERENCE))
    return (sampled * each).sum()

  expected = jnp.zeros(V) if divergence is None else jax.grad(
    regularizers.EXACT[divergence])(THETA, REFERENCE)
  np.testing.assert_allclose(jax.grad(loss)(THETA), expected, atol=1e-6)


@pytest.mark.parametrize('function', [*regularizers.SAMPLED.values(), *regularizers.EXACT.values()])
def test_gradients_are_those_of_finite_differences(function):
  x = jnp.asarray([-1.3, -0.4, -2.2])
  y = jnp.asarray([-0.9, -1.4, -0.7])
  scalar, step = lambda x: function(x, y).sum(), 1e-2
  numeric = [(scalar(x.at[i].add(step)) - scalar(x.at[i].add(-step))) / (2 * step)
             for i in range(3)]
  np.testing.assert_allclose(jax.grad(scalar)(x), numeric, atol=2e-3)


def test_half_precision_logits_are_compared_in_float32():
  found = regularizers.reverse_kl(THETA.astype(jnp.bfloat16), REFERENCE.astype(jnp.bfloat16))
  assert found.dtype == jnp.float32


@pytest.mark.parametrize('measured, expected', [
  (6.0, 0.2), (6.6, 0.2 * (1 + 0.1 * 0.5)), (60.0, 0.2 * (1 + 0.2 * 0.5)), (0.0, 0.2 * 0.9)])
def test_the_adaptive_coefficient_by_hand(measured, expected):
  found = regularizers.adaptive_coefficient(
    jnp.float32(0.2), jnp.float32(measured), target=6.0, horizon=1000, count=500)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
