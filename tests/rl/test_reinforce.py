"""REINFORCE: its sampled gradient is the enumerated one, and it finds known optima."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from judging import make_experience

from perl import trees
from perl.models import lm
from perl.objectives import returns
from perl.peft import adapters
from perl.rl import update as learner
from perl.rl.algorithms import reinforce
from perl.rl.rollout import rollout
from perl.train import optim, step
from perl.types import Experience

V, EOS, BETA, TEMPERATURE, ROWS = 5, 1, 0.25, 0.7, 4096
MODEL, BASE = tiny.make('llama', layers=1, vocab_size=V)
POLICY = tiny.trained(tiny.lora(BASE, head=False), 0.3, seed=1)
REFERENCE = tiny.trained(tiny.lora(BASE, head=False), 0.3, seed=2)
REWARD, CRITIC = (tiny.trained(tiny.lora(BASE), 0.3, seed=s) for s in (3, 4))
PROMPT = jnp.asarray([[0, 2, 3]], jnp.int32)
FROZEN = {'reference': REFERENCE, 'reward': REWARD}


def repeated(rows):
  return jnp.tile(PROMPT, (rows, 1)), jnp.ones((rows, 3), bool)


def sampled(policy, key, *, response, rows=ROWS):
  return rollout(
    MODEL, BASE, policy, *repeated(rows), key, max_new_tokens=response, temperature=TEMPERATURE,
    eos_id=EOS, pad_id=0,
  )


def enumerated():
  """Every response of at most two tokens: ids, mask and response mask, [N, 3 + 2]."""
  rows = [(a, b) for a, b in itertools.product(range(V), repeat=2) if a != EOS or b == 0]
  prompts, whole = repeated(len(rows))
  mask = jnp.concatenate([whole, jnp.asarray([[True, a != EOS] for a, _ in rows])], 1)
  tokens = jnp.concatenate([prompts, jnp.asarray(rows, jnp.int32)], 1)
  return tokens, mask, mask & (jnp.arange(5) >= 3)


def objective(policy):
  """(1 - beta) E r - beta KL(pi || reference), over all responses of two tokens."""
  tokens, mask, response_mask = enumerated()
  ask = functools.partial(
    lm.logprobs, MODEL, BASE, tokens=tokens, mask=mask, temperature=TEMPERATURE, start=3)
  logprobs = jnp.where(response_mask, ask(policy), 0.0).sum(-1)
  log_ratio = logprobs - jnp.where(response_mask, ask(REFERENCE), 0.0).sum(-1)
  scores = lm.score(MODEL, BASE, REWARD, tokens, mask)
  p = jnp.exp(logprobs)
  return jnp.vdot(p, (1 - BETA) * scores - BETA * log_ratio), p.sum()


@pytest.mark.parametrize('baseline', reinforce.BASELINES)
def test_the_sampled_gradient_is_the_enumerated_one(baseline):
  """Through sampler, reward model, shaping, baseline and loss; projected on random directions."""
  learnt, fixed = adapters.split(POLICY)
  whole = lambda x: trees.combine(x, fixed)
  enumerate_all = jax.value_and_grad(lambda x: objective(whole(x)), has_aux=True)
  (_, mass), exact = jax.jit(enumerate_all)(learnt)
  samples = 2 if baseline == 'leave_one_out' else 1
  common = dict(max_new_tokens=2, temperature=TEMPERATURE, samples=samples)
  build = make_experience(MODEL, beta=BETA, **common)
  loss = learner.make_loss(MODEL, 'reinforce', baseline=baseline, **common)
  running, parts = {'mean_return': jnp.float32(0.8), 'seen': jnp.float32(9.0)}, 16

  @jax.jit
  def gradients(experience):
    experience = reinforce.estimate(
      experience, baseline=baseline, samples=samples, running=running)

    def one(part):
      tree = lambda x: {'policy': whole(x), 'critic': CRITIC}
      return jax.grad(lambda x: loss(tree(x), BASE, part, None)[0]['policy'].value())(learnt)

    cut = jax.tree.map(lambda x: x.reshape(parts, ROWS // parts, *x.shape[1:]), experience)
    return jax.lax.map(one, cut)

  out = sampled(POLICY, jax.random.key(7), response=2)
  found = gradients(build(BASE, FROZEN, out, jnp.ones(ROWS))[0])
  assert mass == pytest.approx(1.0, abs=1e-5)
  flat = lambda tree, lead: np.concatenate(
    [np.asarray(x, np.float64).reshape(*lead, -1) for x in jax.tree.leaves(tree)], -1)
  exact, found = flat(exact, ()), -flat(found, (parts,))
  assert np.linalg.norm(exact) > 0.05  # so that the test can fail
  for direction in [exact, *np.random.default_rng(0).normal(size=(6, exact.size))]:
    estimates = found @ direction
    error = estimates.std(ddof=1) / parts**0.5
    assert abs(estimates.mean() - exact @ direction) < 4 * error
  assert found.mean(0) @ exact == pytest.approx(exact @ exact, rel=0.25)


def experience_of(out, rewards, weight=None):
  """Of rewards f32[B, T] by hand, instead of a reward model's."""
  weight = jnp.ones(out.tokens.shape[0]) if weight is None else weight
  rewards = jnp.where(out.response_mask, rewards, 0.0)
  z = returns.returns_to_go(rewards, out.response_mask)
  return Experience(
    tokens=out.tokens, mask=out.mask, response_mask=out.response_mask,
    behaviour_logprobs=out.logprobs, reference_logprobs=jnp.zeros_like(out.logprobs),
    rewards=rewards, returns=z, scores=rewards.sum(-1), weight=weight)


def updating(tx, **given):
  """The train step of REINFORCE with the batch's mean."""
  options = dict(temperature=TEMPERATURE, baseline='batch_mean') | given
  microbatches = options.pop('microbatches', 1)
  return step.make_train_step(
    learner.make_loss(MODEL, 'reinforce', **options), tx, split=adapters.split,
    prepare=learner.make_prepare(MODEL, 'reinforce', **options), microbatches=microbatches)


def learn(reward, *, method, steps, rate, beta=0.0, rows=128):
  """Probabilities of the arms after some steps from the base, with the batch-mean baseline."""
  policy = adapters.init(jax.random.key(0), BASE, method, rank=2)
  tx = optim.make('adamw', learning_rate=rate, steps=steps, schedule_name='cosine')
  state = step.init_state({'policy': policy}, tx, jax.random.key(1), adapters.split)
  update = updating(tx, max_new_tokens=1)
  anchor = arms({})

  @jax.jit
  def build(out):
    k1 = out.logprobs - jnp.log(anchor)[out.tokens]
    return experience_of(out, (1 - beta) * reward[out.tokens] - beta * k1)

  for i in range(steps):
    key = jax.random.fold_in(jax.random.key(2), i)
    out = sampled(state.adapters['policy'], key, response=1, rows=rows)
    state, metrics = update(state, BASE, build(out))
    assert i or metrics['sampler_gap'] < 1e-5
  assert update._cache_size() == 1
  return anchor, arms(state.adapters['policy'])


def arms(policy):
  logits = lm.logits(MODEL, BASE, policy, *repeated(1))[0, -1]
  return jax.nn.softmax(logits / TEMPERATURE)


def test_it_finds_the_best_arm():
  reward = jnp.asarray([0.0, 0.3, 1.0, 0.5, 0.1])
  before, after = learn(reward, method='lora', steps=60, rate=0.05)
  assert before[2] < 0.6 and after[2] > 0.95


def test_it_finds_the_gibbs_policy_of_the_regularised_bandit():
  """The optimum of (1 - beta) r - beta KL is pi ~ anchor exp((1 - beta) r / beta)."""
  reward, beta = jnp.asarray([0.0, 1.0, 0.5, 0.0, 0.1]), 0.4
  before, after = learn(reward, method='full', steps=120, rate=0.02, beta=beta, rows=512)
  optimum = before * jnp.exp((1 - beta) * reward / beta)
  optimum = optimum / optimum.sum()
  assert jnp.abs(before - optimum).sum() > 0.2
  assert jnp.abs(after - optimum).sum() < 0.06


def test_microbatches_are_the_full_batch():
  """The mean of a batch too: it is taken before the batch is cut up."""
  out = sampled(POLICY, jax.random.key(3), response=2, rows=8)
  build = make_experience(MODEL, max_new_tokens=2, beta=BETA, temperature=TEMPERATURE)
  e, _ = build(BASE, FROZEN, out, jnp.ones(8).at[5].set(0.0))
  tx = optim.make('sgd', learning_rate=1.0, steps=1, clip_norm=0.0)
  found = []
  for parts in (1, 4):
    fresh = {'policy': jax.tree.map(jnp.copy, POLICY)}
    state = step.init_state(fresh, tx, jax.random.key(0), adapters.split)
    update = updating(tx, max_new_tokens=2, microbatches=parts)
    found.append(update(state, BASE, e))
  tiny.close(*(state.adapters for state, _ in found), rtol=1e-4)
  tiny.close(*(metrics for _, metrics in found), rtol=1e-4)


def test_the_loss_is_the_sum_of_both_terms_and_dropout_is_off():
  tree = {
    'policy': tiny.trained(tiny.lora(BASE, head=False, dropout=0.5), 0.3, seed=1),
    'critic': tiny.trained(tiny.lora(BASE, dropout=0.5), 0.3, seed=4),
  }
  out = sampled(POLICY, jax.random.key(3), response=2, rows=4)
  e = experience_of(out, jnp.asarray(out.tokens, jnp.float32))
  loss = learner.make_loss(MODEL, 'reinforce', max_new_tokens=2, temperature=TEMPERATURE)

  def total(tree, key):
    terms, metrics = loss(tree, BASE, e, key)
    return sum(term.value() for term in terms.values()), metrics

  run = jax.jit(jax.value_and_grad(total, has_aux=True))
  (value, metrics), grads = run(tree, jax.random.key(0))
  tiny.equal(((value, metrics), grads), run(tree, jax.random.key(1)))
  np.testing.assert_allclose(
    value, metrics['policy_loss'].value() + metrics['value_loss'].value(), rtol=1e-5)
  assert metrics['sampler_gap'].value() < 1e-5
  v = jax.jit(lambda: lm.values(MODEL, BASE, CRITIC, out.tokens, out.mask))()
  expected = jnp.where(e.response_mask, (e.returns - v) ** 2, 0.0).sum(-1).mean()
  np.testing.assert_allclose(metrics['value_loss'].value(), expected, rtol=1e-5)


def test_an_unknown_baseline_is_an_error():
  with pytest.raises(ValueError, match=r"\('value', 'batch_mean', .*\), found 'mean'"):
    reinforce.trains(baseline='mean')
