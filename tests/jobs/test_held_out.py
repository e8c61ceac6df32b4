"""What the anchor's own responses say: the offset, the scale, and the units of a critic."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from perl.jobs._held_out import units_of
from perl.rl import statistics
from perl.rl.experience import less_bad_ends

RL = dict(max_new_tokens=8, missing_eos_penalty=0.0, overlong=0.0, reward_centre=True,
          regularizer='kl', regularize='reward', beta=0.1, reward_weight=1.0)
RAW = np.random.default_rng(0).normal(3.7, 0.5, 64).astype(np.float32)
"""A reward model's scores."""


def answers(ruled=0.0, finished=True, length=4):
  n = len(RAW)
  ruled = np.broadcast_to(np.float32(ruled), n)
  return types.SimpleNamespace(
    scores=RAW * 1.0 + ruled, ruled=ruled, tokens=[[0] * length] * n,
    finished=np.broadcast_to(finished, n))


@pytest.mark.parametrize('given, said', [
  ({}, {}), ({'reward_centre': False}, {}), ({'beta': 0.4}, {}), ({'regularize': 'loss'}, {}),
  ({}, {'ruled': 2.0}), ({'reward_centre': False}, {'ruled': 2.0}),
  ({'missing_eos_penalty': 1.5}, {'finished': np.arange(64) % 2 == 0}),
  ({'overlong': 0.5, 'reward_centre': False}, {'length': 6})], ids=str)
@pytest.mark.parametrize('scale', ['none', 'running'])
def test_a_critic_from_the_reward_model_speaks_in_units_of_returns(given, said, scale):
  """Its value is the return that the anchor's responses have: no advantage, on average."""
  rl, told = ConfigDict(RL | given), answers(**said)
  units, running = units_of(rl, told, statistics.first(beta=rl.beta, reward_scale=scale))
  head = units.of_critic({'kernel': jnp.asarray([[1.0]]), 'bias': jnp.asarray([0.0])})
  values = told.scores - told.ruled  # h = r, of which the head makes V
  values = values * float(head['kernel'][0, 0]) + float(head['bias'][0])
  scores = less_bad_ends(jnp.asarray(told.scores), jnp.asarray(told.finished),
                         jnp.full(64, said.get('length', 4)), max_new_tokens=8,
                         missing_eos_penalty=rl.missing_eos_penalty, overlong=rl.overlong)
  by = statistics.scale(running, jnp.zeros(1), jnp.zeros(1))
  share = 1 - rl.beta if rl.regularize == 'reward' else 1.0
  returned = share * statistics.transformed(scores, offset=units.offset, scale=by)
  assert np.mean(returned - values) == pytest.approx(0.0, abs=1e-4)
  if not said:  # the same constant for every response: each is told apart as it was
    np.testing.assert_allclose(values, returned, atol=1e-4)
  if rl.reward_centre:
    assert np.mean(returned) == pytest.approx(0.0, abs=1e-4)
  if scale == 'running':
    assert np.std(returned) == pytest.approx(share, rel=1e-3)


def test_the_offset_is_that_of_what_is_rewarded():
  """With what a missing end costs: else every finished response would have an advantage."""
  rl = ConfigDict(RL | {'missing_eos_penalty': 2.0})
  units, _ = units_of(rl, answers(finished=np.arange(64) < 16), {})
  assert units.offset == pytest.approx(RAW.mean() - 2.0 * 0.75, rel=1e-5)


def test_responses_that_no_rule_judges_say_nothing():
  rl, told = ConfigDict(RL), answers()
  told.scores = np.where(np.arange(64) < 32, told.scores, np.nan)
  assert units_of(rl, told, {})[0].offset == pytest.approx(RAW[:32].mean(), rel=1e-5)
  told.scores = told.scores * np.nan
  with pytest.raises(ValueError, match='expected rules to judge some of the anchor'):
    units_of(rl, told, {})
