"""A step of RL: whose log-probs it compares, which prompts it takes, what scales its rewards."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl.peft import adapters
from perl.rl import algorithms, statistics
from perl.rl.rules import Rules
from perl.rl.step import known_options, make_step
from perl.train import optim, sharding, step

PROMPT, R, VOCABULARY = 5, 6, tiny.V
FIELDS = {'beta': 0.1, 'temperature': 1.0, 'regularizer': 'none', 'regularize': 'loss'}
MODELS = {}


def world(dtype):
  """(model, base, policy, reward) of a precision."""
  if dtype not in MODELS:
    model, base = tiny.make('llama', layers=1, dtype=dtype)
    MODELS[dtype] = (model, base, tiny.trained(tiny.lora(base, head=False), seed=1),
                     tiny.trained(tiny.lora(base), seed=2))
  return MODELS[dtype]


def made(algorithm, dtype='float32', *, cache='model', merged=False, rate=0.0, rules=(),
         running=None, further=None, reward_weight=1.0, **given):
  """(step, its first state)."""
  model, base, policy, reward = world(dtype)
  options = algorithms.resolve(
    algorithm, dict.fromkeys(algorithms.OPEN) | FIELDS | {'samples': 2, 'overlong': 0.0} | given)
  tx = optim.make('sgd', learning_rate=rate, steps=9, clip_norm=0.0)
  learning = {'policy': jax.tree.map(jnp.copy, policy)}
  if 'critic' in algorithms.trains(algorithm, options):
    learning['critic'] = tiny.lora(base)
  state = step.init_state(learning, tx, jax.random.key(0), adapters.split, running)
  mesh = sharding.mesh(devices=jax.devices()[:1])
  places = sharding.state_shardings(state, base, mesh)
  module = Rules((), (), None)
  module.rules = dict(rules)
  module.weights = (1.0,) * len(rules)
  built = make_step(
    model, base, {'reference': policy, 'reward': reward} if reward_weight else {
      'reference': policy},
    [types.SimpleNamespace(prompt=str(i)) for i in range(64)], tx, places, algorithm=algorithm,
    sampling=dict(
      max_new_tokens=R, eos_id=1, pad_id=0, cache=cache, merged=merged, temperature=1.0),
    rewarding=dict(rules=module, decode=str, reward_weight=reward_weight), further=further,
    max_new_tokens=R, **{k: v for k, v in options.items() if k in known_options()})
  return built, sharding.place(state, places)


def prompts(number=0, rows=4, length=PROMPT):
  return {'tokens': tiny.tokens(rows, length, seed=number), 'weight': jnp.ones(rows),
          'mask': jnp.ones((rows, length), bool), 'index': number * rows + jnp.arange(rows)}


# --- The ratio is 1 before any update


@pytest.mark.parametrize('dtype, cache, merged, given', [
  (dtype, cache, merged, given)
  for dtype, cache, merged in (
    ('float32', 'model', False), ('float32', 'model', True), ('float32', 'bfloat16', False),
    ('float32', 'int8', False), ('bfloat16', 'model', False), ('bfloat16', 'model', True),
    ('bfloat16', 'int8', True))
  for given in ({}, {'minibatches': 2, 'epochs': 2})], ids=str)
def test_the_ratio_is_1_before_any_update(dtype, cache, merged, given):
  """Of GSPO, whose clip is 3e-4: with a rate of 0 every update is the first."""
  run, state = made('gspo', dtype, cache=cache, merged=merged, **given)
  _, metrics = run(state, prompts())
  assert metrics['clip_fraction'] == 0 and metrics['kl_old'] < 1e-9
  wide = (dtype, cache, merged) == ('float32', 'model', False)
  assert (metrics['sampler_gap'] < 1e-5) == wide or merged


def test_without_the_trainers_log_probs_clips_bind_before_any_update():
  run, state = made('gspo', 'bfloat16', behaviour='sampler')
  _, metrics = run(state, prompts(rows=16))
  assert metrics['clip_fraction'] > 0.2 and metrics['sampler_gap'] > 1e-3


def test_a_kl_in_the_reward_is_0_at_the_anchor_whatever_the_sampler_computes_in():
  run, state = made('rloo', 'bfloat16', regularizer='kl', regularize='reward')
  _, metrics = run(state, prompts())
  assert metrics['kl'] == 0.0 and metrics['sampler_gap'] > 1e-3


def test_the_correction_weighs_what_the_sampler_finds_otherwise():
  for correction, equal in (('none', True), ('token_truncate', False)):
    run, state = made('grpo', 'bfloat16', correction=correction, correction_cap=1.0)
    _, metrics = run(state, prompts(rows=8))
    assert ('correction' not in metrics) == equal
    assert equal or 0.9 < metrics['correction'] < 1.0  # nothing above the cap of 1


# --- Prompts of rounds


def same_or_not(wanted):
  """A rule by which the responses to a prompt differ where `wanted` says so."""
  def rewards(examples, responses, dataset):
    return [float(i % 2 if wanted(int(e.prompt)) else 1.0) for i, e in enumerate(examples)]
  return {'rule': rewards}


@pytest.mark.parametrize('wanted, taken', [
  (lambda prompt: True, 1), (lambda prompt: prompt % 2, 2), (lambda prompt: False, 3)])
def test_further_prompts_are_taken_only_where_they_are_needed(wanted, taken):
  """KL in the reward tells the rewards of any two responses apart, and informs nobody."""
  numbers = itertools.count(1)
  run, state = made(
    'dapo', rules=same_or_not(wanted), rounds=3, regularizer='kl', regularize='reward',
    reward_weight=0.0, further=lambda: prompts(next(numbers), length=PROMPT + 3))
  experience, metrics = run.collect(state, prompts())
  assert metrics['rounds'].value() == taken == next(numbers)
  assert metrics['equal_groups'].value() == pytest.approx({1: 0.0, 2: 0.5, 3: 1.0}[taken])
  assert experience.tokens.shape == (8, PROMPT + (3 if taken > 1 else 0) + R)
  assert experience.weight.sum() == (0 if taken == 3 else 8)
  chosen = experience.tokens[:, -PROMPT - R:-R]
  if taken == 1:
    np.testing.assert_array_equal(chosen[::2], prompts()['tokens'])


def test_equal_scores_give_no_advantage_whatever_their_kl():
  run, state = made('grpo', rules=same_or_not(lambda prompt: False), reward_weight=0.0,
                    regularizer='kl', regularize='reward')
  far = state.replace(adapters={'policy': tiny.trained(state.adapters['policy'], seed=9)})
  experience, _ = run.gather(far, prompts())
  assert len(set(np.asarray(experience.rewards.sum(-1)).tolist())) > 4  # the KL's
  e = algorithms.find('grpo').estimate(experience, samples=2)
  np.testing.assert_array_equal(e.advantages, 0.0)


# --- The scale of rewards


def test_remax_compares_two_returns_of_one_scale():
  """Equal scores of sample and greedy response: no advantage, whatever was seen before."""
  constant = {'rule': lambda examples, responses, dataset: [float(e.prompt) for e in examples]}
  running = statistics.first(beta=0.1, reward_scale='running')
  run, state = made('remax', rules=constant, reward_weight=0.0, samples=2, running=running)
  for first in (running, statistics.begun(running, jnp.asarray([0.0, 9.0, -4.0]))):
    experience, _ = run.gather(state.replace(running=first), prompts())
    e = algorithms.find('remax').estimate(experience)
    np.testing.assert_array_equal(e.advantages, 0.0)
    assert np.ptp(experience.rewards.sum(-1)) > 0.1


def test_all_rounds_of_an_update_share_a_scale():
  numbers = itertools.count(1)
  rule = {'rule': lambda examples, responses, dataset: [
    10.0 ** (i % 2 * len(examples) * (int(e.prompt) > 3)) for i, e in enumerate(examples)]}
  running = statistics.first(beta=0.1, reward_scale='running')
  run, state = made('dapo', rules=rule, rounds=2, reward_weight=0.0, running=running,
                    further=lambda: prompts(next(numbers)))
  experience, _ = run.collect(state, prompts())
  assert len(set(np.asarray(experience.scale).tolist())) == 1


def test_a_scale_is_1_until_scores_have_differed():
  running = statistics.first(beta=0.1, reward_scale='running')
  zeros, ones = jnp.zeros(8), jnp.ones(8)
  assert statistics.scale(running, zeros, ones) == 1.0
  after = statistics.advanced(running, types.SimpleNamespace(scores=zeros + 100.1, weight=ones))
  after = statistics.advanced(after, types.SimpleNamespace(scores=zeros + 100.1, weight=ones))
  assert statistics.scale(after, zeros + 100.1, ones) == 1.0
  half = jnp.asarray([0.0, 1.0] * 4)
  assert statistics.scale(running, half, ones) == pytest.approx(2.0, rel=1e-5)
  scored = statistics.transformed(half, offset=0.5, scale=2.0, clip=0.7)
  np.testing.assert_allclose(scored, [-0.7, 0.7] * 4)


# --- What nobody can judge, and what did not end


def test_a_response_without_a_reward_is_left_out_and_counted():
  rule = {'rule': lambda examples, responses, dataset: [
    None if i == 3 else float(i % 2) for i in range(len(examples))]}
  run, state = made('grpo', rules=rule)
  experience, metrics = run.gather(state, prompts())
  np.testing.assert_array_equal(experience.weight, [1, 1, 1, 0, 1, 1, 1, 1])
  assert metrics['left_out'].value() == pytest.approx(1 / 8)
  assert metrics['rule_rule'].value() == pytest.approx(3 / 7)
  _, metrics = run(state, prompts())
  assert all(np.isfinite(value) for value in jax.device_get(metrics).values())


def test_what_does_not_end_is_compared_but_not_learnt():
  """Its tokens have no gradient; the advantages of the others are as they were."""
  run, state = made('grpo', mask_truncated=True)
  experience, _ = run.gather(state, prompts(rows=8))
  assert 0 < experience.finished.sum() < 16 or not experience.finished.all()
  from perl.rl import update
  options = dict(samples=2, max_new_tokens=R)
  e = {masks: update.make_prepare(world('float32')[0], 'grpo', mask_truncated=masks, **options)(
    state, run.base, experience)[1] for masks in (False, True)}
  np.testing.assert_array_equal(e[True].advantages, e[False].advantages)
  np.testing.assert_array_equal(e[True].weight, e[False].weight * experience.finished)
