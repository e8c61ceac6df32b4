"""Continuous batching samples what a batch samples, row by row, in fewer steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl.models import decode
from perl.rl.rollout import rollout, slots

MODEL, BASE = tiny.make('llama')
POLICY = tiny.trained(tiny.lora(BASE, head=False))
TOKENS = tiny.tokens(13, 6)
MASK = tiny.right_mask([6, 3, 1, 4, 6, 2, 5, 6, 6, 3, 2, 1, 6], 6)[:, ::-1]
HOW = dict(max_new_tokens=12, eos_id=3, pad_id=0)


def same(one, other):
  for name in ('tokens', 'mask', 'response_mask', 'finished'):
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
  np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


@pytest.mark.parametrize('merged, count', [(True, 4), (False, 5), (None, 1), (None, 50)])
def test_slots_sample_what_a_batch_samples(merged, count):
  key = jax.random.key(0)
  batch = rollout(MODEL, BASE, POLICY, TOKENS, MASK, key, merged=merged, **HOW)
  assert len(set(np.asarray(batch.response_mask.sum(1)))) > 2, 'lengths were meant to vary'
  same(batch, rollout(
    MODEL, BASE, POLICY, TOKENS, MASK, key, merged=merged, slots=count, **HOW))


@pytest.mark.parametrize('cache', ['bfloat16', 'int8'])
def test_slots_take_narrow_caches_and_several_samples(cache):
  key = jax.random.key(1)
  found = rollout(
    MODEL, BASE, POLICY, TOKENS[:5], MASK[:5], key, slots=4, samples=3, cache=cache, **HOW)
  assert found.tokens.shape == (15, 18)
  np.testing.assert_array_equal(found.tokens[:, :6], jnp.repeat(TOKENS[:5], 3, 0))
  assert np.isfinite(found.logprobs).all() and found.response_mask[:, 6].all()


def test_slots_work_on_stacks(monkeypatch):
  key = jax.random.key(0)
  batch = rollout(MODEL, BASE, POLICY, TOKENS, MASK, key, **HOW)
  monkeypatch.setattr(decode, 'copies', lambda base: False)
  jax.clear_caches()
  same(batch, rollout(MODEL, BASE, POLICY, TOKENS, MASK, key, slots=4, **HOW))
  same(batch, rollout(MODEL, BASE, POLICY, TOKENS, MASK, key, **HOW))
  jax.clear_caches()


def test_a_row_that_ends_makes_room_at_once():
  """Steps of the model: near all tokens over the slots, and not batches times the longest."""
  steps, real = [0], decode.step

  def counting(*arguments):
    jax.debug.callback(lambda: steps.__setitem__(0, steps[0] + 1))
    return real(*arguments)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(decode, 'step', counting)
    jax.clear_caches()
    out = rollout(MODEL, BASE, POLICY, TOKENS, MASK, jax.random.key(0), slots=4, **HOW)
    jax.effects_barrier()
  jax.clear_caches()
  tokens = int(out.response_mask.sum())
  assert steps[0] < tokens / 4 + 12
  assert steps[0] >= (tokens - 13) / 4  # a prompt's first token takes no step


@pytest.mark.parametrize('lengths, rows, expected', [
  ([10, 10, 10], 64, False), ([1, 2, 40], 64, True), ([1, 2, 40], 16, False)])
def test_slots_pay_where_lengths_vary_and_prompts_wait(lengths, rows, expected):
  assert slots.pays(np.asarray(lengths), rows, 16) is expected
