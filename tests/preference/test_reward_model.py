"""Reward models as the policy meets them: one adapter, or an ensemble of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from judging import make_experience

from perl.models import lm
from perl.peft import adapters
from perl.preference import reward_model
from perl.types import Rollout

MODEL, BASE = tiny.make('llama', layers=1)
MEMBERS = [
  tiny.trained(tiny.lora(BASE, seed, reads=('mean',)), seed=seed) for seed in (1, 2, 3)]
STACK = adapters.stack(MEMBERS)
TOKENS, MASK = tiny.tokens(4, 9), tiny.right_mask([9, 7, 8, 9], 9)
RESPONSE = MASK & (jnp.arange(9) >= 5)
SCORES = jnp.asarray([[1.0, 4.0], [3.0, -2.0]])


@pytest.mark.parametrize('how, expected', [
  ('mean', [2.0, 1.0]), ('minimum', [1.0, -2.0]), ('uncertainty', [1.5, -3.5])])
def test_scores_are_combined_by_hand(how, expected):
  score, spread = reward_model.combine(SCORES, how=how, penalty=0.5)
  np.testing.assert_allclose(score, expected)
  np.testing.assert_allclose(spread, [1.0, 9.0])


def test_one_score_is_its_own_mean_and_minimum():
  for how in reward_model.ENSEMBLES:
    score, spread = reward_model.combine(SCORES[:1], how=how, penalty=2.0)
    np.testing.assert_array_equal(score, SCORES[0])
    np.testing.assert_array_equal(spread, [0.0, 0.0])


def test_an_unknown_combination_is_refused():
  with pytest.raises(ValueError, match='expected rl.ensemble among mean, .* found .median.'):
    reward_model.combine(SCORES, how='median')


@jax.jit
def ask(adapter):
  return reward_model.scores(MODEL, BASE, adapter, TOKENS, MASK, response_mask=RESPONSE)


def test_the_members_are_those_of_the_stack():
  assert [adapters.members(tree) for tree in (STACK, MEMBERS[0], {})] == [3, 0, 0]
  single = jax.jit(lambda adapter: lm.score(
    MODEL, BASE, adapter, TOKENS, MASK, response_mask=RESPONSE))
  expected = jnp.stack([single(member) for member in MEMBERS])
  np.testing.assert_allclose(ask(STACK), expected, atol=1e-5)
  np.testing.assert_allclose(ask(MEMBERS[0]), expected[:1], atol=1e-5)
  assert expected.var(0).min() > 1e-3


def test_aligned_members_have_one_mean_and_the_ensemble_keeps_its_own():
  before = ask(STACK)
  after = ask(reward_model.align(STACK, before.mean(1)))
  np.testing.assert_allclose(after.mean(1), before.mean().repeat(3), atol=1e-5)
  np.testing.assert_allclose(after.mean(0), before.mean(0), atol=1e-5)
  np.testing.assert_allclose(after - after[:, :1], before - before[:, :1], atol=1e-5)


def test_an_experience_is_scored_by_the_ensemble():
  weight = jnp.asarray([1.0, 1.0, 1.0, 0.0])
  rollout = Rollout(TOKENS, MASK, RESPONSE, jnp.zeros(TOKENS.shape), jnp.ones(4, bool))
  reference = tiny.lora(BASE, head=False)
  build = functools.partial(make_experience, MODEL, max_new_tokens=4, beta=0.1, forwards='stacked')
  e, metrics = build(ensemble='uncertainty', ensemble_penalty=2.0)(
    BASE, {'reference': reference, 'reward': STACK}, rollout, weight)
  score, spread = reward_model.combine(ask(STACK), how='uncertainty', penalty=2.0)
  np.testing.assert_allclose(e.scores, score, atol=1e-5)
  np.testing.assert_allclose(metrics['uncertainty'].value(), spread[:3].mean(), rtol=1e-5)
  alone = jax.eval_shape(
    build(), BASE, {'reference': reference, 'reward': MEMBERS[0]}, rollout, weight)
  assert set(metrics) - set(alone[1]) == {'uncertainty'}
