"""What comes beside a policy loss: regularizers in the loss, entropy, documents, old values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from judging import make_experience

from perl import trees
from perl.models import lm, vocabulary
from perl.objectives import regularizers
from perl.peft import adapters
from perl.rl import update
from perl.rl.rollout import rollout
from perl.train import step

PROMPT, RESPONSE, TEMPERATURE, BETA = 3, 4, 0.7, 0.3
MODEL, BASE = tiny.make('llama', layers=1)
POLICY = tiny.trained(tiny.lora(BASE, head=False), 0.3, seed=1)
REFERENCE = tiny.trained(tiny.lora(BASE, head=False), 0.3, seed=2)
CRITIC = tiny.trained(tiny.lora(BASE), 0.3, seed=3)
ADAPTERS = {'policy': POLICY, 'critic': CRITIC}
COMMON = dict(max_new_tokens=RESPONSE, temperature=TEMPERATURE)


@pytest.fixture(scope='module')
def out():
  return rollout(
    MODEL, BASE, POLICY, tiny.tokens(4, PROMPT), jnp.ones((4, PROMPT), bool), jax.random.key(0),
    eos_id=1, pad_id=0, **COMMON)


@pytest.fixture(scope='module')
def experience(out):
  build = make_experience(MODEL, beta=BETA, regularizer='reverse_kl', regularize='loss', **COMMON)
  weight, extra = jnp.asarray([1.0, 1.0, 1.0, 0.0]), jnp.asarray([1.0, 2.0, 0.5, 9.0])
  return build(BASE, {'reference': REFERENCE}, out, weight, 0.0, extra)[0]


def terms(e, policy=POLICY, **given):
  """(terms, metrics) of REINFORCE without a critic, after its estimates."""
  options = dict(COMMON, baseline='none') | given
  adapted = ADAPTERS | {'policy': policy}
  state = step.TrainState(None, adapted, None, None)
  e = update.make_prepare(MODEL, 'reinforce', **options)(state, BASE, e)[1]
  return update.make_loss(MODEL, 'reinforce', **options)(adapted, BASE, e, None)


def distributions(adapter, out):
  """Log-probs of whole distributions at the response's tokens, f32[B, R, V]."""
  logits = lm.logits(MODEL, BASE, adapter, out.tokens, out.mask)[:, PROMPT - 1 : -1]
  return jax.nn.log_softmax(logits / TEMPERATURE)


@pytest.mark.parametrize('name', regularizers.EXACT)
def test_exact_divergences_are_those_of_the_logits(name, experience, out):
  found, _ = jax.jit(lambda e: terms(e, regularizer=name, regularize='loss'))(experience)
  logits = jax.jit(lambda: (distributions(POLICY, out), distributions(REFERENCE, out)))()
  mask = np.asarray(out.response_mask)[:, PROMPT:] & np.asarray([1, 1, 1, 0], bool)[:, None]
  expected = np.where(mask, regularizers.EXACT[name](*logits), 0.0).sum() / 3  # sequence sums
  assert found['regularizer'].value() == pytest.approx(BETA * expected, rel=1e-4)


def test_sampled_ones_are_weighed_by_the_ratio_where_that_is_asked_for(experience):
  """Off policy: the value, and k1's gradient, which without the ratio is that of log pi alone."""
  e = experience.replace(behaviour_logprobs=jnp.where(
    experience.response_mask, experience.behaviour_logprobs - 0.1, 0.0))
  of = lambda **given: jax.jit(lambda e: terms(e, regularize='loss', **given)[0])(e)
  plain = of(regularizer='squared_error')['regularizer'].value()
  weighed = of(regularizer='squared_error', regularizer_ratio=True)['regularizer'].value()
  np.testing.assert_allclose(weighed, np.exp(0.1) * plain, rtol=1e-3)
  with pytest.raises(ValueError, match='mean of its gradients is 0'):
    update.make_loss(MODEL, 'grpo', regularizer='kl', **COMMON)


def test_the_gradient_of_a_weighed_estimate_is_that_of_the_divergence(out):
  """Of one token: the mean over all V of rho k, on policy, has the gradient of reverse KL."""
  theta, other = (jnp.asarray(np.random.default_rng(s).normal(size=5), jnp.float32) for s in (0, 1))
  q = jax.nn.log_softmax(other)

  def estimate(theta, k):
    new = jax.nn.log_softmax(theta)
    rho = jnp.exp(new - jax.lax.stop_gradient(new))
    return jnp.vdot(jax.lax.stop_gradient(jnp.exp(new)), rho * k(new, q))

  exact = jax.grad(lambda theta: regularizers.reverse_kl(theta, other))(theta)
  for k in (regularizers.kl, regularizers.bregman):
    np.testing.assert_allclose(jax.grad(estimate)(theta, k), exact, atol=1e-6)


def test_entropy_is_that_of_the_logits_and_is_raised(experience, out):
  found, metrics = jax.jit(lambda e: terms(e, regularizer='none', entropy=0.5))(experience)
  logp = jax.jit(lambda: distributions(POLICY, out))()
  mask = np.asarray(out.response_mask)[:, PROMPT:] & np.asarray([1, 1, 1, 0], bool)[:, None]
  each = np.where(mask, -(np.exp(logp) * logp).sum(-1), 0.0)
  assert metrics['token_entropy'].value() == pytest.approx(each.sum() / mask.sum(), rel=1e-4)
  assert found['entropy'].value() == pytest.approx(-0.5 * each.sum() / 3, rel=1e-4)


def test_gradients_through_whole_distributions_are_those_of_whole_logits(out):
  """In chunks, with the slope formed in the forward pass, beside plain autodiff."""
  learnt, fixed = adapters.split(POLICY)
  read = slice(PROMPT - 1, PROMPT + RESPONSE - 1)
  states = lambda adapter: lm.hidden(MODEL, BASE, adapter, out.tokens, out.mask, read=read)

  def ours(x):
    adapter = trees.combine(x, fixed)
    return vocabulary.read(regularizers.forward_kl, MODEL, BASE, adapter, states(adapter),
                           states(REFERENCE), temperature=TEMPERATURE).sum()

  def plain(x):
    return regularizers.forward_kl(
      distributions(trees.combine(x, fixed), out), distributions(REFERENCE, out)).sum()

  tiny.close(*(jax.jit(jax.grad(f))(learnt) for f in (ours, plain)), rtol=1e-3, atol=1e-5)


def test_documents_are_learnt_beside(experience):
  tokens, mask = tiny.tokens(4, 6, seed=5), tiny.right_mask([6, 4, 5, 6], 6)
  e = experience.replace(aside={'tokens': tokens, 'mask': mask, 'loss_mask': mask})
  found, metrics = jax.jit(lambda e: terms(e, regularizer='none', ptx=0.25))(e)
  logprobs = jax.jit(lambda: lm.logprobs(MODEL, BASE, POLICY, tokens, mask))()
  expected = -float((logprobs * mask).sum() / mask.sum())
  assert metrics['ptx_loss'].value() == pytest.approx(expected, rel=1e-4)
  assert found['ptx'].value() == pytest.approx(0.25 * expected, rel=1e-4)


def test_old_values_are_the_critics_before_the_first_update_in_parts_too(experience, out):
  state = step.TrainState(None, ADAPTERS, None, None)
  v = jax.jit(lambda: lm.values(MODEL, BASE, CRITIC, out.tokens, out.mask, start=PROMPT))()
  for parts in (1, 2):
    prepare = jax.jit(functools.partial(
      update.make_prepare(MODEL, 'ppo', microbatches=parts, **COMMON), state))
    e = prepare(BASE, experience)[1]
    np.testing.assert_allclose(e.values, v, atol=1e-5)
    inside = np.asarray(out.response_mask)[:3]
    assert np.asarray(e.advantages)[:3][inside].mean() == pytest.approx(0.0, abs=1e-5)


def test_reference_and_policy_need_one_unembedding(out):
  adapted = dict(POLICY, embed={'unembed': 0})
  with pytest.raises(ValueError, match='expected an unembedding that policy and reference share'):
    vocabulary.read(regularizers.reverse_kl, MODEL, BASE, adapted, None, jnp.zeros(1))
