"""Laws of every family of models: they are options of one class, and each must hold for each."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl.models import context, decode, lm

LENGTHS = [10, 7, 1, 4]


@pytest.fixture(scope='module', params=list(tiny.FAMILIES))
def family(request):
  model, base = tiny.make(request.param)
  fresh = tiny.lora(base, head=False)
  return types.SimpleNamespace(
    name=request.param, model=model, base=base, fresh=fresh, adapter=tiny.trained(fresh),
    logits=functools.partial(jax.jit(functools.partial(lm.logits, model)), base),
    tolerance=0.1 if request.param == 'bfloat16' else 2e-5,
  )


def test_a_fresh_adapter_is_the_base_to_the_bit(family):
  """Operation by operation: compiled whole, XLA may fuse, and so round, the two programs apart."""
  tokens, mask = tiny.tokens(), tiny.right_mask(LENGTHS)
  with jax.disable_jit():
    one, other = (lm.logits(family.model, family.base, adapter, tokens, mask)
                  for adapter in ({}, family.fresh))
  tiny.equal(one, other)


def test_a_fresh_adapter_is_the_base_and_a_trained_one_is_not(family):
  tokens, mask = tiny.tokens(), tiny.right_mask(LENGTHS)
  plain = family.logits({}, tokens, mask)
  np.testing.assert_allclose(
    family.logits(family.fresh, tokens, mask), plain, atol=family.tolerance)
  assert jnp.abs(family.logits(family.adapter, tokens, mask) - plain).max() > 1e-3


def test_what_lies_under_the_mask_changes_nothing(family):
  mask = tiny.right_mask(LENGTHS)
  a, b = (jnp.where(mask, tiny.tokens(), tiny.tokens(seed=s)) for s in (1, 2))
  a, b = (np.asarray(family.logits(family.adapter, x, mask)) for x in (a, b))
  np.testing.assert_array_equal(a[mask], b[mask])
  assert np.isfinite(a).all() and np.isfinite(b).all()


def test_left_and_right_padding_agree(family):
  tokens, mask = tiny.tokens(), tiny.right_mask(LENGTHS)
  shift = lambda x: jnp.stack([jnp.roll(row, 10 - n, 0) for row, n in zip(x, LENGTHS)])
  right = np.asarray(family.logits(family.adapter, tokens, mask))
  left = np.asarray(family.logits(family.adapter, shift(tokens), shift(mask)))
  np.testing.assert_allclose(left[shift(mask)], right[mask], atol=family.tolerance)


def test_neighbours_change_nothing(family):
  mask, a = tiny.right_mask(LENGTHS), tiny.tokens(seed=1)
  b = tiny.tokens(seed=2).at[1].set(a[1])
  a = family.logits(family.adapter, a, mask)
  b = family.logits(family.adapter, b, mask.at[::2].set(True))
  tiny.equal(a[1], b[1])


def test_no_token_sees_a_later_one(family):
  mask, a = tiny.right_mask([10] * 4), tiny.tokens(seed=1)
  b = a.at[:, 6:].set(tiny.tokens(seed=2)[:, 6:])
  a, b = family.logits(family.adapter, a, mask), family.logits(family.adapter, b, mask)
  np.testing.assert_array_equal(a[:, :6], b[:, :6])
  assert not np.array_equal(a[:, 6], b[:, 6])


@pytest.mark.parametrize('copy', [True, False])
def test_cached_decoding_is_teacher_forcing(family, copy):
  """Logits of prefill and of each step are those of the whole sequence, with an adapter."""
  if family.name.startswith('remat') or family.name == 'unrolled':
    pytest.skip('an option of training alone')
  model, prompt = family.model, 5
  tokens = tiny.tokens()
  mask = jnp.concatenate([tiny.right_mask([5, 3, 1, 4], 5)[:, ::-1], jnp.ones((4, 5), bool)], 1)

  @jax.jit
  def decoded(base, adapter):
    parts = decode.parts(model, base, adapter, copy=copy)
    first, cache = decode.prefill(model, parts, tokens[:, :prompt], mask[:, :prompt], 5)

    def step(cache, slot):
      seen = jnp.broadcast_to(jnp.arange(5) <= slot, (4, 5))
      logits, cache = decode.step(model, parts, cache, tokens[:, prompt + slot], seen, slot)
      return cache, logits

    _, rest = jax.lax.scan(step, cache, jnp.arange(5))
    return jnp.concatenate([first[None], rest]).swapaxes(0, 1)

  found = decoded(family.base, family.adapter)
  expected = family.logits(family.adapter, tokens, mask)[:, prompt - 1 :]
  np.testing.assert_allclose(found, expected, atol=2 * family.tolerance)


@pytest.mark.parametrize('remat', ['none', 'layer'])
def test_a_window_of_all_layers_is_known_to_the_compiler(remat, monkeypatch):
  """So that blocked attention skips the keys beyond it: it must not pass through remat as data."""
  model, base = tiny.make('mistral', remat=remat)
  windows, real = [], context.attention

  def spy(*arrays, window, **options):
    windows.append(window)
    return real(*arrays, window=window, **options)

  monkeypatch.setattr(context, 'attention', spy)
  jax.grad(lambda b: lm.logits(model, b, {}, tiny.tokens(), tiny.right_mask(LENGTHS)).sum())(base)
  assert windows and set(map(type, windows)) == {int}


def test_remat_and_unrolling_change_no_gradient():
  tokens, mask = tiny.tokens(), tiny.right_mask(LENGTHS)
  grads = []
  for name in ('llama', 'remat', 'remat_products', 'remat_attention', 'unrolled'):
    model, base = tiny.make(name)
    loss = lambda a, model=model, base=base: lm.logprobs(model, base, a, tokens, mask).sum()
    grads.append(jax.jit(jax.grad(loss))(tiny.trained(tiny.lora(base, head=False))))
  for other in grads[1:]:
    tiny.close(grads[0], other, atol=1e-4)


def test_grouped_queries_are_heads_that_share_keys():
  """kv_heads=1 equals kv_heads=2 whose key and value heads are copies of the one."""
  model, base = tiny.make('llama')
  attn = base['layers']['block']['attn']
  double = {n: {'kernel': jnp.tile(attn[n]['kernel'], (1, 1, 2))} for n in ('k', 'v')}
  block = {**base['layers']['block'], 'attn': {**attn, **double}}
  tokens, mask = tiny.tokens(), tiny.right_mask(LENGTHS)
  shared = lm.logits(model, base, {}, tokens, mask)
  whole = type(model)(dataclasses.replace(model.config, kv_heads=2))
  doubled = lm.logits(whole, {**base, 'layers': {'block': block}}, {}, tokens, mask)
  np.testing.assert_allclose(shared, doubled, atol=1e-5)
