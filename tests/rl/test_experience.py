"""Experience: scores, KL and shaped rewards of a rollout, under stop-gradient."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from judging import make_experience

from perl.models import lm
from perl.objectives import returns
from perl.rl import statistics
from perl.rl.rollout import rollout

PROMPT, RESPONSE, BETA = 5, 4, 0.25
MODEL, BASE = tiny.make('llama', layers=1)
POLICY = tiny.trained(tiny.lora(BASE, head=False), seed=1)
REWARD = tiny.trained(tiny.lora(BASE), seed=2)
WEIGHT = jnp.asarray([1.0, 1.0, 1.0, 0.0])
OTHER = tiny.lora(BASE, head=False)  # the base itself


@pytest.fixture(scope='module')
def out():
  mask = tiny.right_mask([5, 3, 1, 4], PROMPT)[:, ::-1]
  sampled = rollout(
    MODEL, BASE, POLICY, tiny.tokens(4, PROMPT), mask, jax.random.key(0),
    max_new_tokens=RESPONSE, temperature=0.7, eos_id=1, pad_id=0,
  )
  # Two rows by hand: one ended early, two cut off.
  short = sampled.response_mask.at[0, PROMPT + 2 :].set(False)
  return sampled.replace(
    response_mask=short, mask=sampled.mask & (short | (jnp.arange(PROMPT + RESPONSE) < PROMPT)),
    logprobs=jnp.where(short, sampled.logprobs, 0.0),
    finished=jnp.asarray([True, False, True, False]),
  )


@pytest.fixture(scope='module')
def build():
  return make_experience(
    MODEL, max_new_tokens=RESPONSE, beta=BETA, temperature=0.7, missing_eos_penalty=2.0)


def test_scores_take_the_penalty_of_a_missing_eos(out, build):
  e, _ = build(BASE, {'reference': OTHER, 'reward': REWARD}, out, WEIGHT)
  expected = lm.score(MODEL, BASE, REWARD, out.tokens, out.mask)
  np.testing.assert_allclose(e.scores, expected - 2.0 * jnp.asarray([0, 1, 0, 1]), atol=1e-5)


def test_rewards_are_floats_at_the_last_token_with_k1_everywhere(out, build):
  e, _ = build(BASE, {'reference': OTHER, 'reward': REWARD}, out, WEIGHT, 0.5)
  assert e.rewards.dtype == jnp.float32
  reference = lm.logprobs(MODEL, BASE, {}, out.tokens, out.mask, temperature=0.7)
  k1 = np.where(out.response_mask, out.logprobs - reference, 0.0)
  expected = -BETA * k1
  for b in range(4):
    last = np.flatnonzero(out.response_mask[b])[-1]
    expected[b, last] += (1 - BETA) * (e.scores[b] - 0.5)
  np.testing.assert_allclose(e.rewards, expected, atol=1e-5)
  assert np.abs(k1).max() > 0.01


def test_returns_are_those_of_the_rewards(out, build):
  e, _ = build(BASE, {'reference': OTHER, 'reward': REWARD}, out, WEIGHT)
  z = returns.returns_to_go(e.rewards, out.response_mask)
  np.testing.assert_allclose(e.returns, z, atol=1e-6)


def test_another_regularizer_in_the_reward_or_in_the_loss(out):
  common = dict(max_new_tokens=RESPONSE, beta=BETA, samples=2, regularizer='squared_error')
  frozen = {'reference': OTHER, 'reward': REWARD}
  e, metrics = make_experience(MODEL, **common)(BASE, frozen, out, WEIGHT)
  whole = e.rewards.sum(-1)
  expected = (1 - BETA) * e.scores - BETA * jnp.where(
    out.response_mask, (out.logprobs - e.reference_logprobs) ** 2 / 2, 0.0).sum(-1)
  np.testing.assert_allclose(whole, expected, rtol=1e-4)
  np.testing.assert_allclose(
    metrics['objective'].value(), (expected * WEIGHT).sum() / WEIGHT.sum(), rtol=1e-4)
  e, _ = make_experience(MODEL, regularize='loss', **common)(BASE, frozen, out, WEIGHT)
  np.testing.assert_allclose(e.rewards.sum(-1), e.scores, rtol=1e-5)
  np.testing.assert_array_equal(e.beta, jnp.full(4, BETA))


def test_without_a_reference_or_a_reward_model_their_passes_are_not_made(out, monkeypatch):
  """Reference-free mode: the base is read by nobody, and no KL is claimed."""
  monkeypatch.setattr(lm, 'hidden', None)
  monkeypatch.setattr(lm, 'score', None)
  build = make_experience(MODEL, max_new_tokens=RESPONSE, beta=BETA, regularizer='none',
                          overlong=0.5, missing_eos_penalty=2.0)
  e, metrics = build(BASE, {}, out, WEIGHT, 0.0, jnp.asarray([1.0, 2.0, 3.0, 4.0]))
  lengths = np.asarray(out.response_mask.sum(-1))
  late = np.clip((lengths - 2) / 2, 0, 1)  # the last half of 4 tokens
  np.testing.assert_allclose(
    e.scores, [1.0, 2.0, 3.0, 4.0] - 2.0 * np.asarray([0, 1, 0, 1]) - late, rtol=1e-6)
  np.testing.assert_allclose(e.rewards.sum(-1), e.scores, rtol=1e-6)
  assert 'kl' not in metrics and 'objective' not in metrics
  assert not e.reference_logprobs.any()


def test_scores_are_scaled_by_their_deviation_so_far_and_clipped(out):
  running = statistics.first(beta=BETA, reward_scale='running')
  build = make_experience(MODEL, max_new_tokens=RESPONSE, beta=BETA, regularizer='none',
                          reward_clip=1.0)
  scores = jnp.asarray([0.0, 3.0, 9.0, 50.0])  # the last row is a filler
  e, _ = build(BASE, {}, out, WEIGHT, 1.0, scores, running)
  expected = np.clip((np.asarray(scores) - 1.0) / np.std([0.0, 3.0, 9.0]), -1, 1)
  np.testing.assert_allclose(e.rewards.sum(-1), expected, rtol=1e-4)
  np.testing.assert_allclose(e.scores, scores)
  after = statistics.advanced(running, e)
  after = statistics.advanced(after, e.replace(scores=2 * scores))
  seen = [0.0, 3.0, 9.0, 0.0, 6.0, 18.0]
  assert after['count'] == 6 and after['mean'] == pytest.approx(np.mean(seen))
  assert after['squares'] == pytest.approx(6 * np.var(seen), rel=1e-5)


def test_an_adaptive_coefficient_follows_the_kl_and_weighs_the_next_batch(out):
  with pytest.raises(TypeError, match='kl_traget'):
    statistics.first(beta=BETA, kl_traget=0.5)
  running = statistics.first(beta=BETA, kl_target=0.5)
  frozen = {'reference': OTHER}
  build = make_experience(MODEL, max_new_tokens=RESPONSE, beta=BETA)
  e, metrics = build(BASE, frozen, out, WEIGHT, 0.0, 1.0, running)
  far = e.replace(behaviour_logprobs=e.behaviour_logprobs + 1.0)  # a nat a token above the target
  for now, sign in ((far, 1), (e.replace(behaviour_logprobs=e.behaviour_logprobs - 1.0), -1)):
    after = statistics.advanced(running, now, kl_target=0.5, kl_horizon=30.0)
    assert after['beta'] == pytest.approx(BETA * (1 + sign * 0.2 * 3 / 30), rel=1e-5)
  large = statistics.advanced({'beta': jnp.float32(0.985)}, far, kl_target=0.5, kl_horizon=1.0)
  assert large['beta'] == pytest.approx(0.99)  # in the reward it shares 1 with the score
  large = statistics.advanced(
    {'beta': jnp.float32(0.985)}, far, kl_target=0.5, kl_horizon=1.0, regularize='loss')
  assert large['beta'] == pytest.approx(1.2 * 0.985)  # by a fifth, however short the horizon
  twice, _ = build(BASE, frozen, out, WEIGHT, 0.0, 1.0, {'beta': jnp.float32(2 * BETA)})
  kl = np.where(out.response_mask, out.logprobs - e.reference_logprobs, 0).sum(-1)
  np.testing.assert_allclose(twice.rewards.sum(-1), (1 - 2 * BETA) * twice.scores - 2 * BETA * kl,
                             rtol=1e-4, atol=1e-5)


def test_a_moving_average_is_of_the_returns_before():
  running = statistics.first(beta=0.1, baseline='moving_average')
  assert statistics.moving_average(running) == 0.0
  one = lambda x: types.SimpleNamespace(rewards=jnp.full((2, 2), x), weight=jnp.asarray([1.0, 0.0]))
  for value in (1.0, 2.0):
    running = statistics.advanced(running, one(value), baseline_decay=0.5)
  # (1 * 4 + 0.5 * 2) / 1.5
  assert statistics.moving_average(running) == pytest.approx(2.5 / 0.75)


@pytest.mark.parametrize('options, message', [
  ({'regularizer': 'k1'}, "expected rl.regularizer among .* bregman.*found 'k1'"),
  ({'forwards': 'both'}, "expected rl.forwards among .* found 'both'")])
def test_what_an_experience_cannot_be_made_of(options, message):
  with pytest.raises(ValueError, match=message):
    make_experience(MODEL, max_new_tokens=RESPONSE, beta=BETA, **options)


def test_the_offset_is_in_the_rewards_and_not_in_scores_or_metrics(out, build):
  frozen = {'reference': OTHER, 'reward': REWARD}
  (a, m), (b, n) = (build(BASE, frozen, out, WEIGHT, jnp.float32(x)) for x in (0.0, 3.0))
  np.testing.assert_array_equal(a.scores, b.scores)
  tiny.equal(m, n)
  np.testing.assert_allclose((a.rewards - b.rewards).sum(-1), 0.75 * 3.0, rtol=1e-4)


def test_metrics_leave_filler_rows_out(out, build):
  e, metrics = build(BASE, {'reference': OTHER, 'reward': REWARD}, out, WEIGHT)
  np.testing.assert_allclose(metrics['reward'].value(), e.scores[:3].mean(), rtol=1e-5)
  kl = jnp.where(e.response_mask, e.behaviour_logprobs - e.reference_logprobs, 0.0).sum(-1)
  np.testing.assert_allclose(metrics['kl'].value(), kl[:3].mean(), rtol=1e-5)
  tokens = out.response_mask.sum(-1)[:3].mean()
  np.testing.assert_allclose(metrics['response_tokens'].value(), tokens, rtol=1e-6)
  np.testing.assert_allclose(metrics['finished'].value(), 2 / 3, rtol=1e-6)
  objective = 0.75 * metrics['reward'].value() - 0.25 * metrics['kl'].value()
  np.testing.assert_allclose(metrics['objective'].value(), objective, rtol=1e-5)


def test_the_kl_to_itself_is_zero_but_for_the_samplers_rounding(out, build):
  """Teacher-forced on both sides it is 0 to the bit: one formula, one forward."""
  _, metrics = build(BASE, {'reference': POLICY, 'reward': REWARD}, out, WEIGHT)
  assert abs(metrics['kl'].value()) < 1e-5
  ask = lambda adapter: lm.logprobs(MODEL, BASE, adapter, out.tokens, out.mask, temperature=0.7)
  np.testing.assert_array_equal(ask(OTHER), ask({}))


def test_nothing_of_it_is_differentiated(out, build):
  def total(reward):
    e, metrics = build(BASE, {'reference': OTHER, 'reward': reward}, out, WEIGHT)
    return e.rewards.sum() + e.scores.sum() + metrics['reward'].value()

  grads = jax.grad(total)(REWARD)
  assert not any(np.any(g) for g in jax.tree.leaves(grads))
