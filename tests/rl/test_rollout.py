"""Rollouts: what is sampled, recorded and masked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl.models import lm
from perl.rl.rollout import rollout
from perl.rl.rollout.sampling import pick, sample

PROMPT, RESPONSE = 5, 6
MODEL, BASE = tiny.make('mistral', layers=1)  # a window shorter than the sequence
ADAPTER = tiny.trained(tiny.lora(BASE, head=False))
PROMPTS = tiny.tokens(4, PROMPT)
MASK = tiny.right_mask([5, 3, 1, 4], PROMPT)[:, ::-1]
KEY = jax.random.key(3)


def run(tokens=PROMPTS, mask=MASK, key=KEY, eos_id=-1, pad_id=0, temperature=0.7, **options):
  return rollout(
    MODEL, BASE, ADAPTER, tokens, mask, key, max_new_tokens=RESPONSE, eos_id=eos_id, pad_id=pad_id,
    temperature=temperature, **options,
  )


@pytest.fixture(scope='module')
def whole():
  return run()


@pytest.fixture(scope='module')
def ended(whole):
  """A rollout whose EOS is a token that row 0 samples second, and which is the pad too."""
  eos = int(whole.tokens[0, PROMPT + 1])
  assert eos != int(whole.tokens[0, PROMPT])
  return eos, run(eos_id=eos, pad_id=eos)


def test_recorded_logprobs_are_the_trainers(whole):
  """At a temperature, with an adapter, left padding and a window: the importance ratio is 1."""
  found = lm.logprobs(MODEL, BASE, ADAPTER, whole.tokens, whole.mask, temperature=0.7)
  gap = jnp.where(whole.response_mask, whole.logprobs - found, 0.0)
  assert whole.response_mask.sum() > 12
  np.testing.assert_allclose(gap, 0.0, atol=5e-6)
  np.testing.assert_array_equal(jnp.where(whole.response_mask, 0.0, whole.logprobs), 0.0)


def test_prompts_are_kept_and_the_response_follows(whole):
  np.testing.assert_array_equal(whole.tokens[:, :PROMPT], PROMPTS)
  np.testing.assert_array_equal(whole.mask[:, :PROMPT], MASK)
  assert not whole.response_mask[:, :PROMPT].any() and whole.response_mask[:, PROMPT].all()
  np.testing.assert_array_equal(whole.response_mask[:, PROMPT:], whole.mask[:, PROMPT:])


def test_the_response_holds_its_eos_and_nothing_after_it(ended, whole):
  """Masks come from the sampling, not from ids: here the pad is the EOS."""
  eos, out = ended
  for b in range(4):
    response = np.asarray(whole.tokens[b, PROMPT:])
    length = int(np.argmax(response == eos)) + 1 if eos in response else RESPONSE
    assert bool(out.finished[b]) == (eos in response)
    np.testing.assert_array_equal(out.response_mask[b, PROMPT:], np.arange(RESPONSE) < length)
    np.testing.assert_array_equal(out.tokens[b, PROMPT:PROMPT + length], response[:length])
    np.testing.assert_array_equal(out.tokens[b, PROMPT + length:], eos)
  assert out.finished[0] and out.response_mask[0].sum() == 2


@pytest.mark.parametrize('slots', [None, 2])
def test_each_of_several_ids_ends_a_response(whole, slots):
  """The mask, `finished` and the row's last token are those of the first that is sampled."""
  ends = tuple(int(whole.tokens[b, PROMPT + place]) for b, place in ((0, 1), (1, 3), (2, 0)))
  out = run(eos_id=ends, slots=slots)
  for b in range(4):
    response = np.asarray(whole.tokens[b, PROMPT:])
    places = np.flatnonzero(np.isin(response, ends))
    length = places[0] + 1 if len(places) else RESPONSE
    assert bool(out.finished[b]) == bool(len(places))
    np.testing.assert_array_equal(out.response_mask[b, PROMPT:], np.arange(RESPONSE) < length)
    np.testing.assert_array_equal(out.tokens[b, PROMPT:PROMPT + length], response[:length])
  assert len({int(out.tokens[b, PROMPT + out.response_mask[b].sum() - 1]) for b in range(3)}) > 1


def test_pad_may_be_eos(ended):
  """The same responses, masks and log-probs as with a pad of its own."""
  eos, out = ended
  apart = run(eos_id=eos, pad_id=(eos + 1) % tiny.V)
  np.testing.assert_array_equal(out.mask, apart.mask)
  np.testing.assert_array_equal(out.logprobs, apart.logprobs)
  np.testing.assert_array_equal(out.finished, apart.finished)
  found = lm.logprobs(MODEL, BASE, ADAPTER, out.tokens, out.mask, temperature=0.7)
  gap = jnp.where(out.response_mask, out.logprobs - found, 0.0)
  np.testing.assert_allclose(gap, 0.0, atol=5e-6)


def test_neighbours_and_batch_size_change_nothing(whole):
  others = tiny.tokens(4, PROMPT, seed=9).at[1].set(PROMPTS[1])
  again = run(others, MASK)
  tiny.equal(*(jax.tree.map(lambda x: x[1], out) for out in (whole, again)))
  fewer = run(PROMPTS[:2], MASK[:2])
  np.testing.assert_array_equal(fewer.tokens, whole.tokens[:2])
  np.testing.assert_allclose(fewer.logprobs, whole.logprobs[:2], atol=5e-6)


def test_garbage_under_the_prompts_mask_changes_nothing(whole):
  garbage = jnp.where(MASK, PROMPTS, tiny.tokens(4, PROMPT, seed=8))
  again = run(garbage)
  np.testing.assert_array_equal(again.tokens[:, PROMPT:], whole.tokens[:, PROMPT:])
  np.testing.assert_array_equal(again.logprobs, whole.logprobs)


def test_a_key_is_a_rollout_and_another_key_another(whole):
  before = rollout._cache_size()
  tiny.equal(run(), whole)
  assert not np.array_equal(run(key=jax.random.key(4)).tokens, whole.tokens)
  assert rollout._cache_size() == before, 'expected no recompilation for another key'


def test_temperature_zero_is_the_likeliest_token():
  out = run(temperature=0.0)
  logits = lm.logits(MODEL, BASE, ADAPTER, out.tokens, out.mask)
  likeliest = jnp.argmax(logits, -1)[:, PROMPT - 1 : -1]
  kept = out.response_mask[:, PROMPT:]
  np.testing.assert_array_equal(out.tokens[:, PROMPT:][kept], likeliest[kept])


# The distribution of one token.

P = np.asarray([0.5, 0.25, 0.15, 0.1])
LOGITS = jnp.log(jnp.asarray(P, jnp.float32))


@pytest.mark.parametrize('options, kept', [
  ({}, P),
  (dict(temperature=0.5), P**2),
  (dict(top_k=2), P * [1, 1, 0, 0]),
  (dict(top_k=9), P),
  (dict(top_p=0.5), P * [1, 0, 0, 0]),
  (dict(top_p=0.6), P * [1, 1, 0, 0]),
  (dict(top_p=0.01), P * [1, 0, 0, 0]),
  (dict(top_k=3, top_p=0.8, temperature=2.0), P**0.5 * [1, 1, 1, 0]),
])
def test_sampling_follows_the_distribution_that_it_records(options, kept):
  rows = 4000
  draw = jax.jit(functools.partial(sample, **{'temperature': 1.0, **options}))
  token, logprob = draw(jnp.tile(LOGITS, (rows, 1)), jax.random.split(KEY, rows))
  expected = kept / kept.sum()
  found = np.bincount(token, minlength=4) / rows
  assert (np.abs(found - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / rows)).all()
  np.testing.assert_allclose(np.exp(logprob), expected[token], rtol=1e-5)


def test_a_token_is_picked_in_proportion_to_its_weight():
  weights = jnp.asarray([0.0, 2.0, 0.0, 1.0, 5.0, 0.0])
  uniform = (jnp.arange(80) + 0.5) / 80
  found = np.bincount(pick(jnp.tile(weights, (80, 1)), uniform), minlength=6)
  np.testing.assert_array_equal(found, [0, 20, 0, 10, 50, 0])


def test_the_largest_and_the_smallest_uniform_pick_what_has_weight():
  rng = np.random.default_rng(0)
  weights = jnp.asarray(np.where(rng.random((500, 130)) < 0.5, 0, rng.exponential(size=(500, 130))),
                        jnp.float32)
  largest = 1 - jnp.finfo(jnp.float32).epsneg
  for uniform in (0.0, largest):
    found = pick(weights, jnp.full(500, uniform))
    assert (np.take_along_axis(np.asarray(weights), np.asarray(found)[:, None], 1) > 0).all()
  last = 129 - np.argmax(np.asarray(weights)[:, ::-1] > 0, -1)
  assert (np.abs(np.asarray(pick(weights, jnp.full(500, largest))) - last) <= 1).mean() > 0.9


@pytest.mark.parametrize('size', [2, 33, 200])
def test_every_token_of_a_vocabulary_can_be_drawn(size):
  """Whatever its size: blocks need not come out even."""
  rows = 100 * size
  logits = jnp.asarray(np.random.default_rng(1).normal(size=size), jnp.float32)
  token, logprob = jax.jit(functools.partial(sample, temperature=1.0))(
    jnp.tile(logits, (rows, 1)), jax.random.split(KEY, rows))
  expected = np.asarray(jax.nn.softmax(logits))
  found = np.bincount(token, minlength=size) / rows
  assert len(found) == size
  assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / rows)).all()
  np.testing.assert_allclose(logprob, jax.nn.log_softmax(logits)[token], atol=2e-6)


def test_a_token_of_next_to_no_probability_keeps_it():
  logits = jnp.asarray([0.0, -25.0, 0.0, -jnp.inf])
  token, logprob = sample(jnp.tile(logits, (2, 1)), jax.random.split(KEY, 2), temperature=1.0)
  assert set(np.asarray(token)) <= {0, 2}
  np.testing.assert_allclose(logprob, -np.log(2.0), rtol=1e-6)
