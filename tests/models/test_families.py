"""Laws of every family of models: they are options of one class, and each must hold for each."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl.models import lm
from perl.rl.rollout import rollout

TEMPERATURE = 0.7
PROMPT, RESPONSE = 5, 5
EOS, PAD = 1, 0


@pytest.fixture(scope='module', params=list(tiny.FAMILIES))
def family(request):
  model, base = tiny.make(request.param)
  fresh = tiny.lora(base)

  @jax.jit
  def ask(base, adapter, tokens, mask):
    arguments = model, base, adapter, tokens, mask
    return {
      'logits': lm.logits(*arguments),
      'logprobs': lm.logprobs(*arguments, temperature=TEMPERATURE),
      'values': lm.values(*arguments),
      'score': lm.score(*arguments),
    }

  return types.SimpleNamespace(
    name=request.param, model=model, base=base, fresh=fresh, adapter=tiny.trained(fresh),
    ask=functools.partial(ask, base), tolerance=5e-2 if request.param == 'bfloat16' else 2e-5,
  )


def test_a_fresh_adapter_is_the_base_to_the_bit(family):
  tokens, mask = tiny.tokens(), tiny.right_mask([10, 7, 10, 3])
  plain = family.ask({'head': family.fresh['head']}, tokens, mask)
  tiny.equal(plain, family.ask(family.fresh, tokens, mask))
  moved = family.ask(family.adapter, tokens, mask)
  assert np.abs(moved['logits'] - plain['logits']).max() > 1e-3


def test_what_lies_under_the_mask_changes_nothing(family):
  mask = tiny.right_mask([10, 7, 1, 4])
  a, b = (jnp.where(mask, tiny.tokens(), tiny.tokens(seed=s)) for s in (1, 2))
  a, b = family.ask(family.adapter, a, mask), family.ask(family.adapter, b, mask)
  for out in (a, b):
    out['logits'] = jnp.where(mask[..., None], out['logits'], 0.0)
  tiny.equal(a, b)
  assert np.isfinite(a['logits']).all()


def test_left_and_right_padding_agree(family):
  tokens, lengths = tiny.tokens(), [10, 7, 1, 4]
  right = tiny.right_mask(lengths)
  shift = lambda x: jnp.stack([jnp.roll(row, 10 - n, 0) for row, n in zip(x, lengths)])
  a = family.ask(family.adapter, tokens, right)
  b = family.ask(family.adapter, shift(tokens), shift(right))
  for name in ('logits', 'logprobs', 'values'):
    for x, y, n in zip(a[name], b[name], lengths):
      np.testing.assert_allclose(y[10 - n :], x[:n], atol=family.tolerance, err_msg=name)
  np.testing.assert_allclose(a['score'], b['score'], atol=family.tolerance)


def test_neighbours_change_nothing(family):
  mask = tiny.right_mask([10, 7, 1, 4])
  a = tiny.tokens(seed=1)
  b = tiny.tokens(seed=2).at[1].set(a[1])
  a = family.ask(family.adapter, a, mask)
  b = family.ask(family.adapter, b, mask.at[::2].set(True))
  tiny.equal(*(jax.tree.map(lambda x: x[1], out) for out in (a, b)))


def test_no_token_sees_a_later_one(family):
  mask = tiny.right_mask([10] * 4)
  a = tiny.tokens(seed=1)
  b = jnp.concatenate([a[:, :6], tiny.tokens(seed=2)[:, 6:]], 1)
  a, b = family.ask(family.adapter, a, mask), family.ask(family.adapter, b, mask)
  np.testing.assert_array_equal(a['logits'][:, :6], b['logits'][:, :6])
  np.testing.assert_array_equal(a['logprobs'][:, :6], b['logprobs'][:, :6])
  np.testing.assert_array_equal(a['values'][:, :7], b['values'][:, :7])  # V(tokens[:6]) is at 6
  assert not np.array_equal(a['logits'][:, 6], b['logits'][:, 6])


def test_cached_decoding_is_teacher_forcing(family):
  """The sampler's log-probs are the trainer's, with an adapter, left padding and a temperature."""
  prompts = tiny.tokens(4, PROMPT)
  mask = tiny.right_mask([5, 3, 1, 4], PROMPT)[:, ::-1]
  out = rollout(
    family.model, family.base, family.adapter, prompts, mask, jax.random.key(3),
    max_new_tokens=RESPONSE, temperature=TEMPERATURE, eos_id=EOS, pad_id=PAD,
  )
  assert out.response_mask.sum() > 12
  found = family.ask(family.adapter, out.tokens, out.mask)['logprobs']
  expected = np.where(out.response_mask, found, 0.0)
  np.testing.assert_allclose(out.logprobs, expected, atol=2 * family.tolerance)


def test_gradients_are_finite_beside_padding(family):
  mask = tiny.right_mask([10, 7, 1, 4])[:, ::-1]

  def loss(adapter):
    return lm.logprobs(family.model, family.base, adapter, tiny.tokens(), mask).sum()

  grads = jax.jit(jax.grad(loss))(family.adapter)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  assert any(np.any(g) for g in jax.tree.leaves(grads))


def test_remat_and_unrolling_change_no_gradient():
  tokens, mask = tiny.tokens(), tiny.right_mask([10, 7, 1, 4])
  grads = []
  for name in ('llama', 'remat', 'unrolled'):
    model, base = tiny.make(name)
    loss = lambda a, model=model, base=base: lm.logprobs(model, base, a, tokens, mask).sum()
    grads.append(jax.jit(jax.grad(loss))(tiny.trained(tiny.lora(base, head=False))))
  tiny.close(grads[0], grads[1], atol=1e-4)
  tiny.close(grads[0], grads[2], atol=1e-4)


def test_grouped_queries_are_heads_that_share_keys():
  """kv_heads=1 equals kv_heads=2 whose key and value heads are copies of the one."""
  model, base = tiny.make('llama')
  whole = dataclasses.replace(model.config, kv_heads=2)
  attn = base['layers']['block']['attn']
  double = {n: {'kernel': jnp.tile(attn[n]['kernel'], (1, 1, 2))} for n in ('k', 'v')}
  block = {**base['layers']['block'], 'attn': {**attn, **double}}
  doubled = {**base, 'layers': {'block': block}}
  tokens, mask = tiny.tokens(), tiny.right_mask([10, 7, 1, 4])
  a = lm.logits(model, base, {}, tokens, mask)
  b = lm.logits(type(model)(whole), doubled, {}, tokens, mask)
  np.testing.assert_allclose(a, b, atol=1e-5)
