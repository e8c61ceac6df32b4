"""Losses and estimators at their edges: exact zeros, and nothing finite that becomes NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perl import masked
from perl.objectives import advantages, losses, policy, preferences, regularizers, returns

B, T = 4, 3
MASK = jnp.asarray([[False, True, True], [False, True, False], [False, False, True], [False] * 3])
WEIGHT = jnp.asarray([1.0, 1.0, 1.0, 0.0])
LARGEST = 1e15
"""Of a score; log-probs are of any size down to its negative."""


# --- Equal scores give the advantage 0, exactly


EQUAL = st.floats(-1e6, 1e6, width=32), st.integers(2, 12), st.integers(1, 3)


def scores(value, samples, groups):
  return jnp.full(samples * groups, value, jnp.float32), jnp.ones(samples * groups)


@pytest.mark.parametrize('value, samples', [(100.1, 8), (1234.567, 12)])
def test_equal_scores_that_rounding_once_told_apart(value, samples):
  for scale in advantages.SCALES:
    a = advantages.group_relative(*scores(value, samples, 1), samples=samples, scale=scale)
    np.testing.assert_array_equal(a, 0.0)
  np.testing.assert_array_equal(masked.whiten(jnp.full(1000, value), jnp.ones(1000, bool)), 0.0)


@settings(max_examples=60, deadline=None)
@given(*EQUAL)
def test_equal_scores_have_no_advantage(value, samples, groups):
  x, weight = scores(value, samples, groups)
  how = dict(samples=samples)
  np.testing.assert_array_equal(advantages.group_relative(x, weight, **how), 0.0)
  np.testing.assert_array_equal(advantages.leave_one_out(x, weight, **how), 0.0)
  np.testing.assert_array_equal(x - advantages.others_mean(x, weight), 0.0)
  np.testing.assert_array_equal(advantages.informative(x, weight, **how), False)
  to_go, mask = x[:, None], jnp.ones((len(x), 1), bool)
  for baseline in (returns.others_baseline, returns.group_mean):
    np.testing.assert_array_equal(to_go - baseline(to_go, mask, weight, **how), 0.0)
  np.testing.assert_array_equal(masked.whiten(x, weight > 0), 0.0)
  assert masked.masked_var(x, weight > 0) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1.0, 1.0, width=32), min_size=6, max_size=6), st.floats(-1e4, 1e4))
def test_advantages_do_not_depend_on_where_scores_lie(x, shift):
  """To rounding of the scores themselves, whose spacing at 1e4 is 1e-3."""
  near = np.float32(np.float32(shift) + np.asarray(x, np.float32)).astype(np.float64)
  for samples in (2, 3, 6):
    groups = near.reshape(-1, samples)
    error = groups - groups.mean(-1, keepdims=True)
    expected = error / (groups.std(-1, ddof=1, keepdims=True) + 1e-4)
    found = advantages.group_relative(jnp.float32(near), jnp.ones(6), samples=samples)
    np.testing.assert_allclose(found, expected.reshape(-1), rtol=1e-4, atol=1e-5)


# --- Nothing finite becomes NaN, forward or backward


LOGPROBS = st.one_of(
  st.floats(-20.0, 0.0, width=32), st.sampled_from([-0.0, -1e-30, -88.8, -1e3, -1e6, -LARGEST]))
SCORES = st.one_of(
  st.floats(-10.0, 10.0, width=32), st.sampled_from([0.0, -88.8, 1e6, -1e10, LARGEST, -LARGEST]))
LISTS = functools.partial(st.lists, min_size=B * T, max_size=B * T)
aggregate = functools.partial(policy.aggregate, mask=MASK, weight=WEIGHT, how='token')


def clipped(new, old, a, level, dual):
  rho = policy.ratios(new, old, MASK, level=level)
  return aggregate(policy.clipped(rho, jnp.where(MASK, a, 0.0), dual=dual)).value()


POLICY = {
  **{f'clipped_{level}_{dual}': functools.partial(clipped, level=level, dual=dual)
     for level in policy.LEVELS for dual in (None, 3.0)},
  'cispo': lambda new, old, a: aggregate(
    policy.cispo(new, policy.ratios(new, old, MASK), a, high=4.0)).value(),
  'reinforce': lambda new, old, a: losses.reinforce(new, a, MASK).sum(),
  'value': lambda new, old, a: losses.value(new, a, MASK).sum(),
  'clipped_value': lambda new, old, a: aggregate(policy.clipped_value(new, old, a)).value(),
  'next_token': lambda new, old, a: losses.next_token(new, MASK).value(),
  **{f'regularizer_{name}': lambda new, old, a, f=f: aggregate(f(new, old)).value()
     for name, f in (regularizers.SAMPLED | {'of_older': regularizers.of_older}).items()},
  **{f'correction_{how}': lambda new, old, a, how=how: aggregate(
    policy.correction(new, old, MASK, how=how, cap=3.0) * new).value()
     for how in policy.CORRECTIONS},
  'shaped': lambda new, old, a: returns.shaped_rewards(a[:, 0], new, old, MASK, beta=0.1).sum(),
  **{f'exact_{name}': lambda new, old, a, f=f: f(new, old).sum()
     for name, f in regularizers.EXACT.items()},
  'entropy': lambda new, old, a: regularizers.entropy(new).sum(),
}


@pytest.mark.parametrize('name', POLICY)
@settings(max_examples=25, deadline=None)
@given(LISTS(LOGPROBS), LISTS(LOGPROBS), LISTS(SCORES))
def test_no_finite_input_of_a_loss_gives_nan(name, new, old, a):
  new, old, a = (jnp.asarray(x, jnp.float32).reshape(B, T) for x in (new, old, a))
  value, slope = _compiled(name)(new, old, a)
  assert not np.isnan(value) and np.isfinite(slope).all()


@functools.cache
def _compiled(name):
  return jax.jit(jax.value_and_grad(POLICY[name]))


ESTIMATES = {
  'whiten': lambda x, v: masked.whiten(x, MASK),
  'whiten_rewards': lambda x, v: masked.whiten(x, MASK, shift_mean=False),
  'gae': lambda x, v: advantages.gae(x, v, MASK)[0],
  'returns': lambda x, v: returns.returns_to_go(x, MASK),
  **{f'relative_{scale}': lambda x, v, scale=scale: advantages.group_relative(
    x[:, 0], WEIGHT, samples=2, scale=scale) for scale in advantages.SCALES},
  'leave_one_out': lambda x, v: advantages.leave_one_out(x[:, 0], WEIGHT, samples=2),
  'others': lambda x, v: returns.others_baseline(x, MASK, WEIGHT),
  'group_mean': lambda x, v: returns.group_mean(x, MASK, WEIGHT, samples=2),
}


@pytest.mark.parametrize('name', ESTIMATES)
@settings(max_examples=25, deadline=None)
@given(LISTS(SCORES), LISTS(SCORES))
def test_no_finite_input_of_an_estimator_gives_nan(name, x, v):
  x, v = (jnp.asarray(y, jnp.float32).reshape(B, T) for y in (x, v))
  assert np.isfinite(ESTIMATES[name](x, v)).all()


PAIRS = {
  'pairwise': lambda x, y: losses.pairwise(x, y, centre=0.01),
  'pointwise': lambda x, y: losses.pointwise(x, (y > 0).astype(jnp.float32)),
  'regression': losses.regression,
  'ranking': lambda x, y: losses.ranking(jnp.stack([x, y], -1), jnp.ones((B, 2), bool)),
  'dpo': lambda x, y: preferences.dpo(x - y, beta=0.1),
}


@pytest.mark.parametrize('name', PAIRS)
@settings(max_examples=25, deadline=None)
@given(st.lists(SCORES, min_size=B, max_size=B), st.lists(SCORES, min_size=B, max_size=B))
def test_no_finite_scores_of_a_reward_loss_give_nan(name, x, y):
  x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
  value, slopes = jax.value_and_grad(lambda x, y: PAIRS[name](x, y).sum(), (0, 1))(x, y)
  assert not np.isnan(value) and all(np.isfinite(s).all() for s in slopes)


@pytest.mark.parametrize('gap, advantage', [(89.0, 0.0), (89.0, 1.0), (89.0, -1.0), (-89.0, 1.0)])
def test_a_log_ratio_beyond_the_exponent_of_a_float(gap, advantage):
  """64 tokens x 1.5 nats: e^96 is no float; the loss and its gradient are."""
  loss = lambda x: policy.clipped(policy.ratios(
    x, jnp.zeros((1, 64)), jnp.ones((1, 64), bool), level='response'), advantage, dual=3.0).mean()
  value, slope = jax.value_and_grad(loss)(jnp.full((1, 64), gap / 64))
  assert np.isfinite(value) and np.isfinite(slope).all()


# --- Sampler, trainer and the policy since


def test_kl_old_is_that_of_the_policy_that_sampled():
  """Shift 2 in a vocabulary of two: samples of the old policy, by enumeration."""
  old, new = (jax.nn.log_softmax(jnp.asarray(x)) for x in ([0.0, 0.0], [2.0, 0.0]))
  exact = float((np.exp(old) * (old - new)).sum())
  mean = lambda k: float((np.exp(old) * k).sum())
  assert mean(regularizers.of_older(new, old)) == pytest.approx(exact, rel=1e-5)
  # Of a continuous shift d ~ N(-2, 4): KL = 2 nats either way; the other direction's mean is not.
  assert mean(regularizers.bregman(new, old)) != pytest.approx(exact, rel=0.1)


def test_corrections_by_hand():
  """Two tokens, w = 2 and 3, of a response of w = 6; one that the trainer finds less likely."""
  trainer = jnp.log(jnp.asarray([[1.0, 0.4, 0.6], [1.0, 0.1, 1.0], [1.0, 1.0, 1.0], [1.0] * 3]))
  sampler = jnp.log(jnp.asarray([[1.0, 0.2, 0.2], [1.0, 0.2, 1.0], [1.0, 1.0, 1.0], [1.0] * 3]))
  expected = {
    'none': [[1, 1, 1], [1, 1, 1]], 'token_truncate': [[1, 2, 2.5], [1, 0.5, 1]],
    'token_mask': [[1, 2, 0], [1, 0.5, 1]], 'sequence_truncate': [[1, 2.5, 2.5], [1, 0.5, 1]],
    'sequence_mask': [[1, 0, 0], [1, 0.5, 1]]}
  for how, weights in expected.items():
    w = policy.correction(trainer, sampler, MASK, how=how, cap=2.5)
    np.testing.assert_allclose(w[:2], weights, rtol=1e-5, err_msg=how)
  with pytest.raises(ValueError, match="found 'word'"):
    policy.correction(trainer, sampler, MASK, how='word', cap=3.0)


def test_a_corrected_mean_is_the_trainers():
  """E over the sampler's tokens of w f is E over the trainer's of f, by enumeration."""
  rng = np.random.default_rng(0)
  trainer, sampler = (jax.nn.log_softmax(jnp.asarray(rng.normal(size=7) / 2)) for _ in range(2))
  f, ones = rng.normal(size=7), jnp.ones((7, 1), bool)
  w = policy.correction(trainer[:, None], sampler[:, None], ones, how='token_truncate', cap=100.0)
  np.testing.assert_allclose((np.exp(sampler) * w[:, 0] * f).sum(), (np.exp(trainer) * f).sum(),
                             rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-4, 10.0), st.floats(-1e6, 1e6), st.floats(0.1, 1e4), st.integers(1, 1024))
def test_an_adaptive_coefficient_stays_positive_and_moves_by_a_fifth(beta, kl, horizon, count):
  after = regularizers.adaptive_coefficient(
    jnp.float32(beta), jnp.float32(kl), target=6.0, horizon=horizon, count=count)
  assert 0.8 * 0.999 <= after / beta <= 1.2 * 1.001
