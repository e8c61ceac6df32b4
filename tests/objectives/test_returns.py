"""Rewards, returns and baselines: by hand, and as the expectations that they stand for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl.objectives import losses, regularizers, returns

MASK = jnp.asarray([[False, True, True, True], [False, False, True, False]])
BETA = 0.25


def test_shaped_rewards_by_hand():
  """(1 - beta) r at the last response token, minus beta k1 at each; integer scores stay whole."""
  logprobs = jnp.asarray([[9.0, -1.0, -2.0, -3.0], [9.0, 9.0, -1.0, 9.0]])
  reference = jnp.asarray([[9.0, -2.0, -2.0, -1.0], [9.0, 9.0, -5.0, 9.0]])
  found = returns.shaped_rewards(jnp.asarray([2, 3]), logprobs, reference, MASK, beta=BETA)
  expected = [[0, -0.25, 0, 1.5 + 0.5], [0, 0, 2.25 - 1.0, 0]]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(returns.sequence_kl(logprobs, reference, MASK), [1 + 0 - 2, 4.0])


@pytest.mark.parametrize('name', regularizers.SAMPLED)
def test_any_penalty_lowers_the_reward_of_its_token(name):
  logprobs = jnp.asarray([[np.nan, -1.0, -2.0, -3.0], [np.inf, 9.0, -1.0, 1e30]])
  reference = jnp.asarray([[9.0, -2.0, -2.0, -1.0], [9.0, np.nan, -5.0, -1e30]])
  penalty = regularizers.SAMPLED[name]
  found = returns.shaped_rewards(
    jnp.zeros(2), logprobs, reference, MASK, beta=BETA, penalty=penalty)
  np.testing.assert_allclose(found[0, 1:], -BETA * penalty(logprobs[0, 1:], reference[0, 1:]))
  np.testing.assert_allclose(found[1], [0, 0, -BETA * penalty(-1.0, -5.0), 0])


def test_equal_policies_have_no_kl_at_all():
  logprobs = jnp.asarray([[-1.3, -0.2, -7.1, -3.0]] * 2)
  np.testing.assert_array_equal(returns.sequence_kl(logprobs, logprobs, MASK), 0.0)


def test_returns_to_go_by_hand():
  rewards = jnp.asarray([[9.0, 1.0, 2.0, 4.0], [9.0, 9.0, 3.0, 9.0]])
  np.testing.assert_allclose(
    returns.returns_to_go(rewards, MASK), [[0, 7, 6, 4], [0, 0, 3, 0]])
  np.testing.assert_allclose(
    returns.returns_to_go(rewards, MASK, gamma=0.5), [[0, 1 + 1 + 1, 4, 4], [0, 0, 3, 0]])


def test_others_baseline_by_hand():
  """The mean of the others; filler rows are no others; a single row has none."""
  mask = jnp.asarray([[False, True, True]] * 4)
  z = jnp.asarray([[0.0, 6.0, 2.0], [0.0, 3.0, 1.0], [0.0, 9.0, 0.0], [0.0, 50.0, 50.0]])
  found = returns.others_baseline(z, mask, jnp.asarray([1.0, 1.0, 1.0, 0.0]))
  np.testing.assert_allclose(found[:3, 1], [6.0, 7.5, 4.5])
  np.testing.assert_array_equal(found[:, 0], 0.0)
  np.testing.assert_array_equal(found[:, 1], found[:, 2])
  alone = returns.others_baseline(z, mask, jnp.asarray([1.0, 0.0, 0.0, 0.0]))
  np.testing.assert_array_equal(alone[0], 0.0)


def test_others_baseline_of_a_prompt_by_hand():
  """Groups of two: the other response's return; a filler row is nobody's baseline."""
  mask, z = jnp.ones((6, 1), bool), jnp.asarray([[1.0], [2.0], [3.0], [5.0], [8.0], [np.nan]])
  found = returns.others_baseline(z, mask, jnp.asarray([1.0] * 5 + [0.0]), samples=2)
  np.testing.assert_allclose(found[:5, 0], [2, 1, 5, 3, 0])


@pytest.mark.parametrize('garbage', [np.nan, np.inf, 1e30])
def test_garbage_under_the_mask_changes_nothing(garbage):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)), jnp.float32)
  dirty = jnp.where(MASK, x, garbage)
  weight = jnp.ones(2)
  shaped = lambda x: returns.shaped_rewards(jnp.ones(2), x, x / 2, MASK, beta=BETA)
  for function in (
    shaped,
    lambda x: returns.returns_to_go(x, MASK),
    lambda x: returns.others_baseline(x, MASK, weight),
    lambda x: returns.sequence_kl(x, jnp.zeros((2, 4)), MASK),
  ):
    np.testing.assert_array_equal(function(dirty), function(x))


def test_a_filler_row_may_hold_anything():
  z = jnp.asarray([[1.0], [2.0], [np.nan]])
  found = returns.others_baseline(z, jnp.ones((3, 1), bool), jnp.asarray([1.0, 1.0, 0.0]))
  np.testing.assert_allclose(found[:2, 0], [2.0, 1.0])


# Policies of two tokens over a vocabulary of three, in full: every response by enumeration.

V = 3
RESPONSES = np.asarray(list(itertools.product(range(V), repeat=2)))
REWARD = jnp.asarray(np.random.default_rng(1).normal(size=len(RESPONSES)), jnp.float32)
FULL = jnp.ones((len(RESPONSES), 2), bool)
THETA, REFERENCE = (
  jnp.asarray(np.random.default_rng(s).normal(size=(1 + V, V)), jnp.float32) for s in (2, 3)
)


def token_logprobs(theta):
  """f[9, 2]: row 0 of theta is for the first token, row 1 + a for the second after a."""
  logp = jax.nn.log_softmax(theta)
  return jnp.stack([logp[0, RESPONSES[:, 0]], logp[1 + RESPONSES[:, 0], RESPONSES[:, 1]]], 1)


def expectation(theta, of):
  """E_pi[of], with no gradient through the probabilities: what sampling sees."""
  return jnp.vdot(jax.lax.stop_gradient(jnp.exp(token_logprobs(theta).sum(-1))), of)


def kl(a, b):
  p, q = token_logprobs(a).sum(-1), token_logprobs(b).sum(-1)
  return jnp.vdot(jnp.exp(p), p - q)


def objective(theta):
  """(1 - beta) E r - beta KL(pi || reference)."""
  p = jnp.exp(token_logprobs(theta).sum(-1))
  return (1 - BETA) * jnp.vdot(p, REWARD) - BETA * kl(theta, REFERENCE)


def reinforce_loss(theta, baseline):
  logprobs, anchor = token_logprobs(theta), token_logprobs(REFERENCE)
  rewards = jax.lax.stop_gradient(
    returns.shaped_rewards(REWARD, logprobs, anchor, FULL, beta=BETA))
  z = returns.returns_to_go(rewards, FULL)
  return expectation(theta, losses.reinforce(logprobs, z - baseline, FULL).sum(-1))


@pytest.mark.parametrize('baseline', [0.0, 0.7])
def test_reinforce_with_k1_in_the_reward_is_the_gradient_of_the_objective(baseline):
  found = jax.grad(reinforce_loss)(THETA, baseline)
  np.testing.assert_allclose(found, -jax.grad(objective)(THETA), atol=2e-6)


def test_k1_as_a_loss_has_no_gradient_and_k2_k3_have_those_of_the_two_kls():
  def as_loss(k):
    log_ratio = lambda theta: (token_logprobs(theta) - token_logprobs(REFERENCE)).sum(-1)
    return jax.grad(lambda theta: expectation(theta, k(log_ratio(theta))))(THETA)

  np.testing.assert_allclose(as_loss(lambda l: l), 0.0, atol=1e-6)
  forward = jax.grad(kl)(THETA, REFERENCE)
  backward = jax.grad(lambda theta: kl(REFERENCE, theta))(THETA)
  np.testing.assert_allclose(as_loss(lambda l: l**2 / 2), forward, atol=2e-6)
  np.testing.assert_allclose(as_loss(lambda l: jnp.exp(-l) - 1 + l), backward, atol=2e-6)


def test_leaving_the_row_out_keeps_the_gradient_unbiased():
  """Over all pairs of responses, the batch-mean baseline leaves E grad as it is without one."""
  pairs = np.asarray(list(itertools.product(range(len(RESPONSES)), repeat=2)))
  mask = jnp.ones((2, 2), bool)

  def pair_loss(theta, with_baseline):
    logprobs = token_logprobs(theta)
    p = jax.lax.stop_gradient(jnp.exp(logprobs.sum(-1)))

    def one(pair):
      z = returns.returns_to_go(jnp.stack([jnp.zeros(2), REWARD[pair]], 1), mask)
      b = returns.others_baseline(z, mask, jnp.ones(2)) if with_baseline else 0.0
      return p[pair].prod() * losses.reinforce(logprobs[pair], z - b, mask).sum(-1).mean()

    return jax.vmap(one)(pairs).sum()

  found, expected = (jax.grad(pair_loss)(THETA, flag) for flag in (True, False))
  np.testing.assert_allclose(found, expected, atol=2e-6)
