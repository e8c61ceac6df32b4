"""Every algorithm, found by its file, by the same laws on a policy that is a table."""

import ast
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import table
import tiny
from jax.test_util import check_grads
from table import BETA, GROUPS, REFERENCE, SCORES, THETA, K, V

from perl import choices
from perl.config import schema
from perl.config.rl_fields import FIELDS
from perl.options import bound
from perl.rl import algorithms
from perl.rl.algorithms import _reads
from perl.types import Experience

NAMES = choices.names('perl.rl.algorithms')
ROWS = np.asarray([0, 1, 4, 7, 5, 2])
NEAR = THETA + 0.1 * jnp.asarray(np.random.default_rng(5).normal(size=THETA.shape), jnp.float32)


def test_every_algorithm_is_found_and_stands_alone():
  assert set(NAMES) >= {
    'reinforce', 'rloo', 'remax', 'reinforce_pp', 'ppo', 'grpo', 'dr_grpo', 'dapo', 'gspo', 'cispo',
    'online_dpo', 'rejection_sampling', 'expert_iteration', 'reward_weighted'}
  for name in NAMES:
    file = pathlib.Path(algorithms.find(name).__file__)
    imports = {n.module for n in ast.walk(ast.parse(file.read_text()))
               if isinstance(n, ast.ImportFrom)}
    imports |= {f'{n.module}.{alias.name}' for n in ast.walk(ast.parse(file.read_text()))
                if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert not imports & {f'perl.rl.algorithms.{other}' for other in NAMES}


@pytest.mark.parametrize('name', NAMES)
def test_own_values_are_those_of_fields_that_are_left_open(name):
  own = algorithms.find(name).OWN
  assert set(own) <= set(algorithms.OPEN)
  assert all(FIELDS[f'rl.{key}'].default is None for key in algorithms.OPEN)
  asked = table.asked(name)
  assert not algorithms.problems(asked | {'algorithm': name})
  assert algorithms.resolve(name, {'clip': 0.1, 'rank': None}) == {'clip': 0.1, 'rank': None}


def test_what_is_no_algorithm_is_named():
  for name in ('roles', 'there_is_none'):
    with pytest.raises(ValueError, match=f'a file of perl/rl/algorithms .* found {name!r}'):
      algorithms.find(name)


@pytest.mark.parametrize('given, message', [
  ({'regularizer': 'kl', 'regularize': 'loss'}, 'mean of its gradients is 0'),
  ({'regularizer': 'reverse_kl', 'regularize': 'reward'}, 'rl.regularize=loss for rl.regularizer'),
  ({'regularizer': 'k1'}, "rl.regularizer among .*'k1'"),
  ({'regularize': 'both'}, "rl.regularize among reward, loss, found 'both'"),
  ({'algorithm': 'grpo', 'samples': 1}, 'at least 2 for rl.algorithm=grpo, found 1'),
  ({'baseline': 'leave_one_out', 'samples': 1}, 'at least 2 for rl.baseline=leave_one_out'),
  ({'dual_clip': 0.5}, 'rl.dual_clip of 0 or above 1'),
  ({'rounds': 3, 'samples': 1}, 'at least 2 for rl.rounds=3, found 1'),
  ({'algorithm': 'remax', 'epochs': 2, 'minibatches': 1}, 'its loss has no ratio'),
  ({'algorithm': 'reinforce', 'epochs': 1, 'minibatches': 4}, 'its loss has no ratio'),
  ({'stop_kl': 0.1, 'epochs': 1, 'minibatches': 1}, 'expected several updates a rollout'),
  ({'kl_target': 1.0, 'beta': 0.0}, 'rl.beta above 0 for rl.kl_target'),
  ({'kl_target': 1.0, 'kl_horizon': 10.0, 'batch_size': 64}, 'rl.kl_horizon of at least'),
  ({'critic_from': 'reward', 'reward_weight': 0.0}, 'a reward model for rl.critic_from=reward'),
  ({'regularizer': 'none', 'kl_target': 1.0}, 'set rl.kl_target=0')])
def test_what_does_not_go_together_is_said(given, message):
  found = algorithms.problems({'regularizer': 'kl', 'regularize': 'reward'} | given)
  assert len(found) == 1
  with pytest.raises(ValueError, match=message):
    raise ValueError(found[0])


@pytest.mark.parametrize('algorithm, option, value, remedy', [
  ('reinforce', 'clip', 0.1, 'rl.algorithm=dapo or '), ('online_dpo', 'aggregation', 'token', '='),
  ('rejection_sampling', 'regularizer', 'kl', 'rl.regularize=loss'), ('ppo', 'baseline', 'value',
   'rl.algorithm=reinforce'), ('reinforce', 'lam', 0.9, 'rl.algorithm=ppo'),
  ('grpo', 'gamma', 0.9, 'an algorithm of returns to go'), ('cispo', 'clip', 0.1, '='),
  ('dapo', 'beta', 0.2, 'a regularizer'), ('dr_grpo', 'scale_rewards', 'batch', 'grpo'),
  ('reinforce', 'baseline_decay', 0.5, 'rl.baseline=moving_average'),
  ('reinforce_pp', 'critic_from', 'reward', 'a critic'), ('ppo', 'best_metric', 'kl', 'rl.keep'),
  ('online_dpo', 'reward_scale', 'running', 'judges by rewards'),
  ('expert_iteration', 'correction', 'token_mask', 'a policy gradient')])
def test_an_option_that_is_not_read_is_refused_by_name(algorithm, option, value, remedy):
  defaults = {path.removeprefix('rl.'): field.default for path, field in schema.of_stage(
    'rl').items()}
  usual = defaults | {'algorithm': algorithm}
  assert algorithms.unread(usual, defaults) == []
  said, = algorithms.unread(usual | {option: value}, defaults)
  assert said.startswith(f'expected rl.{option}=') and f'found {value!r}' in said
  assert f'rl.algorithm={algorithm}' in said and remedy in said.split('or set ')[1]


def test_rows_of_what_is_read_name_options():
  known = {path.removeprefix('rl.') for path in schema.of_stage('rl')}
  assert set(_reads.WHERE) <= known
  assert {algorithms.find(name).JUDGES_BY for name in NAMES} == {
    'rewards', 'returns', 'scores'}


@pytest.mark.parametrize('name', NAMES)
def test_an_algorithm_reads_no_more_than_it_says(name):
  """NaN in what it does not judge by reaches neither its loss nor its gradient."""
  e, now = table.experience(ROWS), table.logprobs(NEAR, ROWS)
  judges_by = algorithms.find(name).JUDGES_BY
  unread = {'rewards': ('returns',), 'returns': ('rewards',), 'scores': ('rewards', 'returns')}
  dirty = e.replace(**{
    field: getattr(e, field) * jnp.nan for field in unread[judges_by]})
  tiny.equal(gradient(name)(now, e), gradient(name)(now, dirty))


# --- Laws of all


@functools.cache
def gradient(name, **given):
  return jax.jit(jax.value_and_grad(functools.partial(table.of_logprobs, name, **given)))


@pytest.mark.parametrize('name', NAMES)
def test_what_is_masked_or_a_filler_changes_nothing(name):
  """NaN outside the responses, and a whole group of garbage that weighs nothing."""
  weight = jnp.asarray([1.0] * 4 + [0.0] * 2)
  clean, dirty = (table.experience(ROWS, weight=weight) for _ in range(2))
  now = table.logprobs(NEAR, ROWS)
  outside = lambda x: jnp.where(clean.response_mask, x, jnp.nan)
  dirty = dirty.replace(
    behaviour_logprobs=outside(clean.behaviour_logprobs), values=outside(clean.values),
    reference_logprobs=outside(clean.reference_logprobs),
    scores=clean.scores.at[4:].set(99.0), rewards=clean.rewards.at[4:].set(-99.0),
    returns=clean.returns.at[4:].set(77.0))
  (a, da), (b, db) = gradient(name)(now, clean), gradient(name)(outside(now), dirty)
  np.testing.assert_allclose(a, b, rtol=1e-5)
  np.testing.assert_allclose(jnp.where(clean.response_mask, da, 0.0),
                             jnp.where(clean.response_mask, db, 0.0), rtol=1e-4, atol=1e-6)
  assert np.isfinite(a) and not da[4:].any() and da[:4].any()


@pytest.mark.parametrize('name', [name for name in NAMES if name != 'cispo'])
def test_the_gradient_is_that_of_finite_differences(name):
  """Off policy, and away from the kinks of clips. CISPO's weight has no gradient: see below."""
  e = table.experience(ROWS)
  now = table.logprobs(NEAR, ROWS)
  loss = jax.jit(functools.partial(table.of_logprobs, name))
  check_grads(lambda x: loss(x, e), (now,), order=1, modes=['rev'], eps=1e-2, atol=2e-2, rtol=2e-2)


# --- What their gradients are, over every draw there is


EVERY = {held: table.experience(np.arange(len(table.RESPONSES)), regularized=held)
         for held in (False, True)}


def expected(of, theta=THETA):
  """E over all groups of K responses of f(the group's rows)."""
  p = table.probabilities(theta)
  return jax.jit(lambda: jnp.tensordot(p[GROUPS].prod(-1), jax.vmap(of)(GROUPS), 1))()


def mean_gradient(name, **given):
  """E of the loss's gradient, on the policy that samples, K responses a batch."""
  return expected(lambda rows: jax.grad(
    lambda theta: table.loss(name, theta, experience_of(rows, name, **given), **given))(THETA))


def experience_of(rows, name, **given):
  held = table.asked(name, **given)
  return table_experience(
    rows, held['regularizer'] != 'none' and held['regularize'] == 'reward')


def table_experience(rows, regularized):
  """`table.experience` of traced row numbers."""
  return jax.tree.map(lambda x: x[rows], EVERY[regularized])


def objective(theta, beta=BETA):
  """(1 - beta) E r - beta KL(pi || pi_ref)."""
  p, q = table.probabilities(theta), table.probabilities(REFERENCE)
  return (1 - beta) * jnp.vdot(p, SCORES) - beta * jnp.vdot(p, jnp.log(p / q))


UNBIASED = {
  'reinforce': [{'baseline': b, 'samples': K} for b in (
    'value', 'batch_mean', 'leave_one_out', 'moving_average', 'none')],
  'rloo': [{}],
  'remax': [{}],
  'ppo': [{'whiten_advantages': False, 'lam': 1.0, 'aggregation': 'sequence_sum'}],
}


@pytest.mark.parametrize('name, given', [(n, g) for n, gs in UNBIASED.items() for g in gs], ids=str)
def test_the_mean_gradient_is_that_of_the_objective(name, given):
  exact = jax.grad(objective)(THETA)
  assert np.abs(exact).max() > 0.05
  np.testing.assert_allclose(mean_gradient(name, **given), -exact, atol=3e-6)


def wins(theta):
  """E_{y, y'} of sg(sign(r(y) - r(y'))) log pi(y): its gradient, of K = 2 responses."""
  p = jax.lax.stop_gradient(table.probabilities(theta))
  sign = jnp.sign(SCORES[:, None] - SCORES[None, :])
  return jnp.vdot(p * (sign @ p), jnp.log(table.probabilities(theta)))


def best_of_two(theta):
  """E log pi of the better of two responses that differ, per token."""
  p = jax.lax.stop_gradient(table.probabilities(theta))
  better = jnp.float32(SCORES[:, None] > SCORES[None, :])
  return jnp.log(table.probabilities(theta)) @ (p * (2 * better @ p)) / 2


def passing(theta):
  """log pi per token of the responses that pass; a batch is the mean over those that do."""
  p = jax.lax.stop_gradient(table.probabilities(theta))
  some = 1 - (p * (SCORES <= 0.5)).sum() ** 2
  above = p * (SCORES > 0.5)
  return some * jnp.vdot(above / above.sum(), jnp.log(table.probabilities(theta))) / 2


def weighted(theta):
  """E of sigmoid(r - r') times 2 log pi(y) of two responses."""
  p = jax.lax.stop_gradient(table.probabilities(theta))
  w = 2 * jax.nn.sigmoid(SCORES[:, None] - SCORES[None, :]) @ p
  return jnp.vdot(p * w, jnp.log(table.probabilities(theta)))


def return_alone(theta):
  return jnp.vdot(table.probabilities(theta), SCORES)


@pytest.mark.parametrize('name, closed, factor, given', [
  # (k - 1) / k of the policy gradient, over the longest length.
  ('dr_grpo', return_alone, 0.5 / 2, {}),
  # Of two responses (r - mean) / std is the sign over root 2: the gradient of being the better one.
  ('grpo', wins, 2**-0.5 / 2, {}),
  ('dapo', wins, 2**-0.5 / 2, {}),
  ('gspo', wins, 2**-0.5 / 2, {}),
  ('cispo', wins, 2**-0.5 / 2, {}),
  ('rejection_sampling', best_of_two, 1.0, {}),
  ('expert_iteration', passing, 1.0, {'threshold': 0.5}),
  ('reward_weighted', weighted, 1.0, {})])
def test_the_mean_gradient_is_the_one_in_closed_form(name, closed, factor, given):
  exact = factor * jax.grad(closed)(THETA)
  assert np.abs(exact).max() > 0.02
  np.testing.assert_allclose(mean_gradient(name, **given), -exact, rtol=2e-3, atol=3e-5)


def test_online_dpo_begins_as_a_gradient_of_wins():
  """At the reference sigmoid is a half: beta / 2 times that of the better less the worse one."""
  def one(rows):
    e = table_experience(rows, False)
    e = e.replace(reference_logprobs=e.behaviour_logprobs)
    return jax.grad(lambda theta: table.loss('online_dpo', theta, e))(THETA)

  np.testing.assert_allclose(expected(one), -0.1 * jax.grad(wins)(THETA), rtol=1e-3, atol=1e-6)


def test_a_sampled_gradient_is_the_enumerated_one():
  """For all: of 4,096 groups, within 5 standard errors in each coordinate."""
  p = np.float64(table.probabilities(THETA)[GROUPS].prod(-1))
  drawn = np.random.default_rng(0).choice(len(GROUPS), 4096, p=p / p.sum())
  for name in ('grpo', 'rloo', 'reinforce_pp', 'rejection_sampling'):
    each = jax.jit(jax.vmap(lambda rows, name=name: jax.grad(
      lambda theta: table.loss(name, theta, experience_of(rows, name)))(THETA)))(GROUPS)
    exact = np.tensordot(p, each, 1)
    found = np.asarray(each)[drawn]
    error = found.std(0) / 64
    assert (np.abs(found.mean(0) - exact) <= 5 * error + 1e-6).all()


# --- The best arm


ARMS = jnp.asarray([0.0, 0.3, 1.0, 0.5, 0.1])
SAMPLES, UPDATES = 64, 80


@pytest.mark.parametrize('name', NAMES)
def test_it_finds_the_best_arm_within_5120_samples(name):
  """A bandit of five arms, one token: 80 updates of 64 samples, each at its own options."""
  module = algorithms.find(name)
  changes = {'threshold': 0.9, 'reward_temperature': 0.2, 'value_clip': 0.0}
  asked = table.asked(name, **changes) | {'max_new_tokens': 1}
  learnt = 'critic' in algorithms.trains(name, asked)
  mask = jnp.ones((SAMPLES, 2), bool).at[:, 0].set(False)

  def experience(theta, v, key):
    arms = jax.random.categorical(key, theta, shape=(SAMPLES,))
    at = lambda x: jnp.stack([jnp.zeros(SAMPLES), x], 1)
    old, rewards = at(jax.nn.log_softmax(theta)[arms]), at(ARMS[arms])
    e = table.experience(np.zeros(SAMPLES, int)).replace(
      tokens=jnp.stack([arms * 0, arms], 1), mask=mask, response_mask=mask, behaviour_logprobs=old,
      reference_logprobs=at(jnp.full(SAMPLES, -jnp.log(5.0))), rewards=rewards, returns=rewards,
      scores=ARMS[arms], values=jnp.full(mask.shape, v),
      greedy_returns=jnp.full(SAMPLES, ARMS[theta.argmax()]))
    return jax.lax.stop_gradient(bound(module.estimate, asked | {'running': {}})(e))

  def step(carry, key):
    theta, v = carry
    e = experience(theta, v, key)

    def loss(theta, v):
      now = jnp.stack([jnp.zeros(SAMPLES), jax.nn.log_softmax(theta)[e.tokens[:, 1]]], 1)
      value = (bound(module.value_loss, asked)(jnp.full(mask.shape, v), e).value()
               if learnt else 0.0)
      return bound(module.policy_loss, asked)(now, e)[0].value() + value

    slope, up = jax.grad(loss, (0, 1))(theta, v)
    slope = slope / jnp.maximum(jnp.abs(slope).max(), 1e-6)  # steps of one size for all
    return (theta - 0.2 * slope, v - 0.2 * up), None

  run = jax.jit(lambda keys: jax.lax.scan(step, (jnp.zeros(5), 0.0), keys)[0][0])
  p = jax.nn.softmax(run(jax.random.split(jax.random.key(1), UPDATES)))
  assert p[2] > 0.9


# --- By hand


def hand(name, rewards, *, now=None, old=None, lengths=None, values=None, scores=None, **given):
  """(loss, experience) of responses of 2 tokens, rewarded at the end, log-probs -1 by default."""
  n, f32 = len(rewards), np.float32
  lengths = np.full(n, 2) if lengths is None else np.asarray(lengths)
  mask = (np.arange(3) >= 1) & (np.arange(3) <= lengths[:, None])
  whole = np.zeros((n, 3), f32)
  whole[np.arange(n), lengths] = rewards
  row = lambda x, other=0.0: np.where(mask, np.broadcast_to(
    other if x is None else np.asarray(x)[:, None], (n, 3)), 0.0).astype(f32)
  e = Experience(
    tokens=np.zeros((n, 3), int), response_mask=mask, mask=mask, rewards=whole,
    behaviour_logprobs=row(old, -1.0), reference_logprobs=row(None, -1.0), returns=row(rewards),
    scores=np.asarray(scores or rewards, f32), values=row(values), weight=np.ones(n, f32),
    greedy_returns=np.full(n, 0.7, f32))
  module, asked = algorithms.find(name), table.asked(name, **given)
  running = {'mean_return': jnp.float32(0.5), 'seen': jnp.float32(1.0)}

  @jax.jit
  def found(e, now):
    e = bound(module.estimate, asked | {'running': running})(e)
    return bound(module.policy_loss, asked)(now, e)[0].value(), e

  loss, e = found(e, row(now, -1.0))
  return float(loss), e


def test_reinforce_by_hand():
  # sums over two tokens: A = 1 - 0.25 and 0 - 0.25; -(-1)(2 A), mean of 2.
  assert hand('reinforce', [1.0, 0.0], values=[0.25, 0.25])[0] == pytest.approx((1.5 - 0.5) / 2)
  e = hand('reinforce', [1.0, 0.0], baseline='moving_average')[1]
  np.testing.assert_allclose(e.advantages[:, 1], [0.5, -0.5], rtol=1e-6)


def test_rloo_by_hand():
  # A = 1 - 0 and 0 - 1; rho is exp(0.1 * 2) of a response of two tokens, above 1.2.
  loss, e = hand('rloo', [1.0, 0.0], now=[-0.9, -1.0])
  np.testing.assert_allclose(e.advantages[:, 1], [1.0, -1.0])
  assert loss == pytest.approx((-1.2 + 1.0) / 2, rel=1e-5)


def test_remax_by_hand():
  assert hand('remax', [1.0, 0.0])[0] == pytest.approx((2 * 0.3 - 2 * 0.7) / 2, rel=1e-5)


def test_reinforce_pp_by_hand():
  # Tokens: 1, 1, 0 of lengths 2 and 1: mean 2/3, variance 2/9.
  _, e = hand('reinforce_pp', [1.0, 0.0], lengths=[2, 1])
  np.testing.assert_allclose(e.advantages[0, 1:], 0.5**0.5, rtol=1e-4)
  np.testing.assert_allclose(e.advantages[1], [0, -2 * 0.5**0.5, 0], rtol=1e-4)
  _, e = hand('reinforce_pp', [1.0, 0.0, 9.0, 9.0], samples=2)  # less each prompt's own mean
  np.testing.assert_allclose(e.advantages[:, 1], [2**0.5, -(2**0.5), 0, 0], atol=1e-4)


def test_ppo_by_hand():
  # delta_2 = 1 - 0.5, A_2 = 0.5; delta_1 = 0.5 - 0.5 = 0, A_1 = 0.9 * 0.5; R = A + V.
  _, e = hand('ppo', [1.0], values=[0.5], lam=0.9, whiten_advantages=False)
  np.testing.assert_allclose(e.advantages, [[0, 0.45, 0.5]], rtol=1e-5)
  np.testing.assert_allclose(e.returns, [[0, 0.95, 1.0]], rtol=1e-5)
  _, white = hand('ppo', [1.0], values=[0.5], lam=0.9)
  np.testing.assert_allclose(white.advantages[0, 1:], [-1.0, 1.0], rtol=1e-3)
  np.testing.assert_allclose(white.returns, e.returns)  # of the advantages before
  module, asked = algorithms.find('ppo'), table.asked('ppo')
  v = jnp.asarray([[0.0, 0.95, 0.4]])  # clipped to 0.7: (0.7 - 0.95)^2 > 0; (0.4 - 1)^2 as it is
  loss = bound(module.value_loss, asked)(v, e)
  assert loss.value() == pytest.approx((0.0625 + 0.36) / 4, rel=1e-5)


def test_groups_by_hand():
  std = 1.0 / 2**0.5  # of 1 and 0, with k - 1 below the line
  _, e = hand('grpo', [1.0, 0.0, 5.0, 5.0])
  np.testing.assert_allclose(e.advantages[:, 1], [0.5 / std, -0.5 / std, 0, 0], rtol=1e-3)
  _, e = hand('dr_grpo', [1.0, 0.0, 5.0, 5.0])
  np.testing.assert_allclose(e.advantages[:, 1], [0.5, -0.5, 0, 0])
  # Lengths 2 and 1: GRPO takes each response's mean, Dr. GRPO a sum over the longest, DAPO tokens.
  near = dict(now=[-1.0, -1.0], lengths=[2, 1])
  a = 0.5 / (std + 1e-4)
  assert hand('grpo', [1.0, 0.0], **near)[0] == pytest.approx(0.0, abs=1e-6)
  assert hand('dr_grpo', [1.0, 0.0], **near)[0] == pytest.approx((-0.5 * 2 + 0.5) / 2 / 2)
  assert hand('dapo', [1.0, 0.0], **near)[0] == pytest.approx(-a / 3, rel=1e-4)


def test_clips_by_hand():
  a = 0.5 / (2**-0.5 + 1e-4)
  up = np.log(1.25)  # between 1.2 and 1.28: GRPO's clip holds it, DAPO's does not
  for name, ratio in (('grpo', 1.2), ('dapo', 1.25)):
    loss, _ = hand(name, [1.0, 0.0], now=[-1 + up, -1.0])
    assert loss == pytest.approx((-a * ratio + a) / 2, rel=1e-4)
  # GSPO: the geometric mean of the ratio, bounded at 4e-4.
  assert hand('gspo', [1.0, 0.0], now=[-0.9, -1.0])[0] == pytest.approx(-a * 4e-4 / 2, rel=2e-3)
  # CISPO: the weight is min(rho, 5), the loss -w A log pi; below 1 nothing bounds it.
  loss, _ = hand('cispo', [1.0, 0.0], now=[1.0, -1.0], old=[-1.0, 0.0])
  assert loss == pytest.approx((-5 * a * 1.0 - np.exp(-1) * a) / 2, rel=1e-4)
  e, now = table.experience(ROWS), table.logprobs(NEAR, ROWS)
  slope = jax.jit(jax.grad(lambda x: table.of_logprobs('cispo', x, e)))
  e = bound(algorithms.find('cispo').estimate, table.asked('cispo'))(e)
  rho = jnp.exp(now - e.behaviour_logprobs)
  np.testing.assert_allclose(slope(now), -rho * e.advantages / 12, atol=1e-6)


def test_what_is_imitated_by_hand():
  # The first of the best; of equals alone, which may all be wrong, none; the mean over its tokens.
  loss, e = hand('rejection_sampling', [1.0, 1.0, 0.0, 2.0, 2.0, 2.0], samples=3,
                 now=[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
  np.testing.assert_array_equal(e.advantages[:, 1], [1, 0, 0, 0, 0, 0])
  assert loss == pytest.approx(1.0)
  loss, _ = hand('expert_iteration', [0.5, -0.4, 1.0], now=[-1.0, -2.0, -3.0], lengths=[2, 2, 1])
  assert loss == pytest.approx((2 * 1 + 3) / 3)
  assert hand('expert_iteration', [0.0, -0.4])[0] == 0.0  # nothing passes
  _, e = hand('reward_weighted', [np.log(3.0), 0.0])
  np.testing.assert_allclose(e.advantages[:, 1], [1.5, 0.5], rtol=1e-5)
  _, e = hand('reward_weighted', [np.log(9.0), 0.0, 0.0], reward_temperature=2.0, samples=3)
  np.testing.assert_allclose(e.advantages[:, 1], [9 / 5, 3 / 5, 3 / 5], rtol=1e-5)


def test_online_dpo_by_hand():
  # Best and worst of the first prompt; the second's score the same and teach nothing.
  loss, _ = hand('online_dpo', [0.0, 1.0, 2.0, 2.0], now=[-2.0, -0.5, -1.0, -1.0])
  d = 2 * (-0.5 + 1) - 2 * (-2.0 + 1)
  assert loss == pytest.approx(np.log1p(np.exp(-0.1 * d)), rel=1e-5)
  with pytest.raises(ValueError, match='at least 2 for pairs, found 1'):
    hand('online_dpo', [0.0], samples=1)


def test_the_vocabulary_is_the_tables():
  assert table.probabilities(THETA).sum() == pytest.approx(1.0, rel=1e-6) and V == 3
