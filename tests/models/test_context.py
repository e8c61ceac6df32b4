"""What is read alone, shared or packed is what the whole rows say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.extend.core import jaxprs_in_params

from perl.models import lm
from perl.models.context import Branches, Rows
from perl.peft import adapters

FAMILIES = ['llama', 'gemma3', 'neox', 'unrolled']
PROMPT, RESPONSE, N = 5, 4, 3


@pytest.fixture(scope='module', params=FAMILIES)
def made(request):
  model, base = tiny.make(request.param)
  return model, base, tiny.trained(tiny.lora(base))


def grouped():
  """Rows of two prompts, three responses each: prompts left-padded, responses right-padded."""
  tokens = tiny.tokens(2 * N, PROMPT + RESPONSE)
  tokens = tokens.at[:, :PROMPT].set(jnp.repeat(tokens[::N, :PROMPT], N, 0))
  prompt = jnp.repeat(tiny.right_mask([5, 3], PROMPT)[:, ::-1], N, 0)
  return tokens, jnp.concatenate([prompt, tiny.right_mask([4, 1, 3, 2, 4, 4], RESPONSE)], 1)


def test_hidden_states_that_are_read_alone_are_those_of_all(made):
  model, base, adapter = made
  tokens, mask = grouped()
  ask = lambda **how: jax.jit(lambda: lm.hidden(model, base, adapter, tokens, mask, **how))()
  whole, last = ask(), jnp.asarray([8, 5, 7, 6, 8, 8])
  np.testing.assert_allclose(ask(read=slice(3, 8)), whole[:, 3:8], atol=1e-5)
  some = ask(read=last)
  np.testing.assert_allclose(some[:, 0], whole[jnp.arange(6), last], atol=1e-5)


def test_a_score_and_its_gradient_need_no_more_than_the_last_token(made):
  model, base, adapter = made
  tokens, mask = grouped()
  last = jnp.asarray([8, 5, 7, 6, 8, 8])

  def by_hand(adapter):
    h = lm.hidden(model, base, adapter, tokens, mask)[jnp.arange(6), last]
    return (h @ adapter['head']['kernel'] + adapter['head']['bias'])[:, 0]

  score = lambda adapter: lm.score(model, base, adapter, tokens, mask)
  weights = jnp.sin(jnp.arange(6.0))
  both = [with_gradient(lambda a, f=f: f(a) @ weights, adapter) for f in (score, by_hand)]
  np.testing.assert_allclose(both[0][0], both[1][0], atol=1e-5)
  tiny.close(both[0][1], both[1][1], atol=1e-4)


def with_gradient(f, adapter):
  """(f, its gradient with respect to what is trained)."""
  value, gradient = jax.jit(jax.value_and_grad(f))(adapter)
  return value, adapters.split(gradient)[0]


@pytest.mark.parametrize('what', ['logprobs', 'values', 'score', 'features'])
def test_a_shared_prompt_changes_nothing(made, what):
  """Values and gradients, of left-padded prompts with three continuations each."""
  model, base, adapter = made
  tokens, mask = grouped()
  responses = mask & (jnp.arange(mask.shape[1]) >= PROMPT)

  def ask(adapter, **how):
    if what == 'logprobs':
      return lm.logprobs(model, base, adapter, tokens, mask, start=PROMPT, temperature=0.7, **how)
    if what == 'values':
      return lm.values(model, base, adapter, tokens, mask, start=PROMPT, **how)
    if what == 'score':
      return lm.score(model, base, adapter, tokens, mask, start=PROMPT, **how)
    return lm.head_features(model, base, adapter, tokens, mask, reads=adapters.HEAD_READS,
                            response_mask=responses, start=PROMPT, **how)

  def weighed(adapter, **how):
    x = ask(adapter, **how)
    return (x * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)).sum()

  alone, shared = (
    with_gradient(functools.partial(weighed, **how), adapter) for how in ({}, {'shared': N}))
  np.testing.assert_allclose(shared[0], alone[0], rtol=1e-5, atol=2e-5)
  tiny.close(shared[1], alone[1], atol=2e-4)


def test_a_shared_prompt_is_computed_once():
  """Fewer operations: eight continuations of one token over a prompt of 64."""
  model, base = tiny.make('llama', layers=4)
  tokens, mask = tiny.tokens(8, 66), jnp.ones((8, 66), bool)

  def flops(shared):
    ask = lambda base: lm.logprobs(model, base, {}, tokens, mask, start=64, shared=shared)
    return dot_operations(jax.make_jaxpr(ask)(base).jaxpr)

  assert flops(8) < flops(1) / 4


def dot_operations(jaxpr) -> int:
  """Multiplications of all products, loops counted as often as they run."""
  total = 0
  for eqn in jaxpr.eqns:
    times = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    if eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      inner = np.prod([eqn.invars[0].aval.shape[i] for i in contracted])
      total += int(np.prod(eqn.outvars[0].aval.shape) * inner)
    for sub in jaxprs_in_params(eqn.params):
      total += times * dot_operations(sub)
  return total


def test_reading_before_the_end_of_a_shared_prompt_is_refused():
  tokens, mask = grouped()
  _, context = Branches.of(tokens, mask, PROMPT, N)
  with pytest.raises(ValueError, match='where the shared prompt ends'):
    context.take(jnp.zeros((2, PROMPT + N * RESPONSE, 1)), slice(3, 8))


def packed():
  """Texts of 4, 3 and 3 tokens, and of 6 and 2 with padding after them, in two rows of ten."""
  segments = jnp.asarray([[1] * 4 + [2] * 3 + [3] * 3, [1] * 6 + [2] * 2 + [0] * 2], jnp.int32)
  return tiny.tokens(2), segments, [(0, 0, 4), (0, 4, 7), (0, 7, 10), (1, 0, 6), (1, 6, 8)]


def unpacked(tokens, texts):
  """(tokens, mask) with a row for each text, right-padded."""
  rows = jnp.stack([jnp.roll(tokens[row], -start) for row, start, _ in texts])
  return rows, tiny.right_mask([stop - start for _, start, stop in texts])


def test_packed_texts_are_the_texts_alone(made):
  model, base, adapter = made
  tokens, segments, texts = packed()
  rows = Rows(segments > 0, segments, right_padded=True)
  ask = jax.jit(functools.partial(lm.logprobs, model, base))
  found = ask(adapter, tokens, rows)
  alone = ask(adapter, *unpacked(tokens, texts))
  for number, (row, start, stop) in enumerate(texts):
    np.testing.assert_allclose(
      found[row, start:stop], alone[number, : stop - start], atol=2e-5)
  np.testing.assert_array_equal(found[1, 8:], 0.0)


def test_packing_changes_no_gradient():
  model, base = tiny.make('llama')
  adapter = tiny.trained(tiny.lora(base, head=False))
  tokens, segments, texts = packed()

  def whole(adapter):
    rows = Rows(segments > 0, segments, right_padded=True)
    return lm.logprobs(model, base, adapter, tokens, rows).sum()

  def apart(adapter):
    return lm.logprobs(model, base, adapter, *unpacked(tokens, texts)).sum()

  tiny.close(*(with_gradient(f, adapter) for f in (whole, apart)), atol=1e-4)


def test_positions_begin_anew_in_each_text():
  _, segments, _ = packed()
  found = Rows(segments > 0, segments).positions()
  np.testing.assert_array_equal(found[0], [0, 1, 2, 3, 0, 1, 2, 0, 1, 2])
  np.testing.assert_array_equal(found[1, :8], [0, 1, 2, 3, 4, 5, 0, 1])


def test_padding_on_the_right_needs_no_mask(made):
  model, base, adapter = made
  tokens, mask = tiny.tokens(), tiny.right_mask([10, 7, 1, 4])
  known = Rows(mask, right_padded=True)
  for ask in (lm.logprobs, lm.score):
    ask = jax.jit(functools.partial(ask, model, base, adapter, tokens))
    np.testing.assert_allclose(ask(known), ask(mask), atol=1e-5)
