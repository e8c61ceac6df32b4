"""Log-probs, values and scores: their shifts, masks and chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.extend.core import jaxprs_in_params

from perl import masked
from perl.models import chunked, lm
from perl.models.block import Block, layers_of
from perl.models.context import Rows
from perl.peft import adapters

LENGTHS = [10, 7, 1, 4]


@pytest.fixture(scope='module')
def made():
  model, base = tiny.make('llama')
  return model, base, tiny.trained(tiny.lora(base))


@pytest.fixture(scope='module')
def ask(made):
  model, base, adapter = made

  @jax.jit
  def everything(tokens, mask):
    arguments = model, base, adapter, tokens, mask
    return {
      'logits': lm.logits(*arguments),
      'hidden': lm.hidden(*arguments),
      'logprobs': lm.logprobs(*arguments, temperature=0.7),
      'values': lm.values(*arguments),
      'score': lm.score(*arguments),
    }

  return everything


def test_token_logprobs_by_hand():
  logits = jnp.log(jnp.asarray([[1.0, 2.0, 5.0]]))
  found = lm.token_logprobs(logits, jnp.asarray([1]))
  np.testing.assert_allclose(found, [np.log(2 / 8)], rtol=1e-6)
  found = lm.token_logprobs(logits, jnp.asarray([1]), temperature=0.5)  # squares: 1, 4, 25
  np.testing.assert_allclose(found, [np.log(4 / 30)], rtol=1e-6)
  assert lm.token_logprobs(logits.astype(jnp.bfloat16), jnp.asarray([1])).dtype == jnp.float32


def test_logprobs_are_of_the_token_at_their_own_place(ask):
  tokens, mask = tiny.tokens(), tiny.right_mask(LENGTHS)
  out = jax.device_get(ask(tokens, mask))
  for b, length in enumerate(LENGTHS):
    expected = np.zeros(10)
    for t in range(1, length):
      scaled = out['logits'][b, t - 1].astype(np.float64) / 0.7
      expected[t] = scaled[tokens[b, t]] - np.log(np.exp(scaled).sum())
    np.testing.assert_allclose(out['logprobs'][b], expected, atol=1e-5)


def test_values_are_read_one_token_earlier_and_scores_at_the_last(made, ask):
  head = made[2]['head']
  out = jax.device_get(ask(tiny.tokens(), tiny.right_mask(LENGTHS)))
  read = out['hidden'] @ np.asarray(head['kernel'])[:, 0] + np.asarray(head['bias'])
  for b, length in enumerate(LENGTHS):
    expected = np.zeros(10)
    expected[1:length] = read[b, : length - 1]
    np.testing.assert_allclose(out['values'][b], expected, atol=1e-5)
    np.testing.assert_allclose(out['score'][b], read[b, length - 1], atol=1e-5)


def test_padding_on_either_side_gives_the_same_answers(ask):
  tokens, mask = tiny.tokens(), tiny.right_mask(LENGTHS)
  shift = lambda x: jnp.stack([jnp.roll(row, 10 - n, 0) for row, n in zip(x, LENGTHS)])
  right, left = ask(tokens, mask), ask(shift(tokens), shift(mask))
  np.testing.assert_allclose(left['score'], right['score'], atol=1e-5)
  for name in ('logprobs', 'values'):
    np.testing.assert_allclose(left[name], shift(right[name]), atol=1e-5, err_msg=name)


def test_garbage_under_the_mask_changes_nothing(ask):
  mask = tiny.right_mask(LENGTHS)
  a, b = (jnp.where(mask, tiny.tokens(), tiny.tokens(seed=s)) for s in (1, 2))
  a, b = ask(a, mask), ask(b, mask)
  for name in ('logprobs', 'values', 'score'):
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batch_size_changes_nothing(ask):
  tokens, mask = tiny.tokens(), tiny.right_mask(LENGTHS)
  whole, alone = ask(tokens, mask), ask(tokens[1:2], mask[1:2])
  tiny.close({k: v[1:2] for k, v in whole.items()}, alone)


def test_start_leaves_the_prompt_out(made):
  tokens, mask = tiny.tokens(), tiny.right_mask([10] * 4)
  whole, late = jax.jit(lambda: [lm.logprobs(*made, tokens, mask, start=s) for s in (0, 6)])()
  np.testing.assert_array_equal(late[:, :6], 0.0)
  np.testing.assert_allclose(late[:, 6:], whole[:, 6:], atol=1e-5)


def intermediates(jaxpr):
  """The shapes of everything a jaxpr computes, inner ones included."""
  for equation in jaxpr.eqns:
    yield from (v.aval.shape for v in equation.outvars)
    for inner in jaxprs_in_params(equation.params):
      yield from intermediates(getattr(inner, 'jaxpr', inner))


def test_chunks_change_neither_logprobs_nor_gradient(monkeypatch):
  """Four positions of nine a chunk, and no [B, T, V] array forward or backward."""
  model, base = tiny.make('llama', layers=1)
  adapter, at_once = tiny.trained(tiny.lora(base, head=False)), 4
  tokens, mask = tiny.tokens(), tiny.right_mask(LENGTHS)

  def loss(adapter):
    out = lm.logprobs(model, base, adapter, tokens, mask, temperature=0.7)
    return (out * jnp.arange(10)).sum(), out

  whole = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapter)
  monkeypatch.setattr(chunked, 'CHUNK_ELEMENTS', at_once * 4 * tiny.V)
  in_chunks = jax.jit(jax.value_and_grad(lambda a: loss(a), has_aux=True))
  tiny.close(whole, in_chunks(adapter), atol=1e-4)
  shapes = list(intermediates(jax.make_jaxpr(in_chunks)(adapter).jaxpr))
  table = (model.config.width, tiny.V)
  logits = [s for s in shapes if s and s[-1] == tiny.V and s != table]
  assert logits, 'expected to see chunks of logits in the jaxpr'
  assert max(np.prod(s) for s in logits) <= at_once * 4 * tiny.V


def test_logprobs_of_a_long_vocabulary_take_no_memory_for_all_logits(monkeypatch):
  """The compiled gradient's temporaries are below the size of [B, T, V] in float32."""
  model, base = tiny.make('llama', layers=1, vocab_size=4096)
  adapter = tiny.lora(base, head=False)
  tokens, mask = jnp.zeros((4, 129), jnp.int32), jnp.ones((4, 129), bool)
  monkeypatch.setattr(chunked, 'CHUNK_ELEMENTS', 4 * 8 * 4096)
  loss = lambda adapter, base: lm.logprobs(model, base, adapter, tokens, mask).sum()
  found = jax.jit(jax.grad(loss)).lower(adapter, base).compile().memory_analysis()
  assert found.temp_size_in_bytes < 4 * 128 * 4096 * 4 / 2


@pytest.mark.parametrize('name', ['mistral', 'gpt2'])
def test_gradients_are_finite_beside_padding(name):
  model, base = tiny.make(name, layers=1)
  mask = tiny.right_mask(LENGTHS)[:, ::-1]
  loss = functools.partial(lm.logprobs, model, base, tokens=tiny.tokens(), mask=mask)
  grads = jax.jit(jax.grad(lambda a: loss(a).sum()))(tiny.trained(tiny.lora(base, head=False)))
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  assert any(np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize('ask_for', [lm.values, lm.score])
def test_no_head_is_an_error_with_a_remedy(made, ask_for):
  model, base, _ = made
  with pytest.raises(ValueError, match=r'expected an adapter with a head.*head=True'):
    ask_for(model, base, {}, tiny.tokens(), tiny.right_mask(LENGTHS))


def test_a_head_may_read_the_likelihood_of_the_response(made):
  """score += weights . (mean, least, last, sum / 16) of log pi over the response's tokens."""
  model, base, adapter = made
  tokens, mask = tiny.tokens(), tiny.right_mask(LENGTHS)
  response = mask & (jnp.arange(10) >= 3)
  weights = jnp.asarray([1.0, -2.0, 3.0, 0.5])
  ask = jax.jit(lambda w, m: lm.score(
    model, base, {**adapter, 'head': adapter['head'] | {'likelihood': w}}, tokens, mask,
    response_mask=m))
  plain = lm.score(model, base, adapter, tokens, mask)
  np.testing.assert_allclose(ask(jnp.zeros(4), response), plain, atol=1e-6)
  found, logprobs = ask(weights, response) - plain, lm.logprobs(model, base, adapter, tokens, mask)
  for b, length in enumerate(LENGTHS):
    x = np.asarray(logprobs[b, 3:length])
    expected = x.mean() - 2 * x.min() + 3 * x[-1] + x.sum() / 32 if len(x) else 0.0
    np.testing.assert_allclose(found[b], expected, atol=1e-4)
  with pytest.raises(ValueError, match='expected a response_mask'):
    ask(weights, None)


def test_a_head_may_read_the_mean_hidden_states_of_response_and_prompt(made):
  """score += weights . (mean of h over the response, over the prompt); 0 where there is none."""
  model, base, adapter = made
  tokens, mask = tiny.tokens(), tiny.right_mask(LENGTHS)
  response = mask & (jnp.arange(10) >= 3)
  weights = np.asarray(jax.random.normal(jax.random.key(5), (2 * model.config.width,)))
  more = {**adapter, 'head': adapter['head'] | {'mean': weights}}
  found = lm.score(model, base, more, tokens, mask, response_mask=response)
  h = np.asarray(lm.hidden(model, base, adapter, tokens, mask))
  plain = lm.score(model, base, adapter, tokens, mask)
  for b, length in enumerate(LENGTHS):
    expected = h[b, : min(3, length)].mean(0) @ weights[model.config.width :]
    expected += h[b, 3:length].mean(0) @ weights[: model.config.width] if length > 3 else 0.0
    np.testing.assert_allclose(found[b] - plain[b], expected, atol=1e-4)


def test_a_head_can_read_the_first_layers_input_and_output_over_the_response(made):
  model, base, adapter = made
  tokens, mask = tiny.tokens(), tiny.right_mask(LENGTHS)
  response = mask & (jnp.arange(mask.shape[1]) >= 3)
  weights = np.asarray(jax.random.normal(jax.random.key(5), (2 * model.config.width,)))
  more = {**adapter, 'head': adapter['head'] | {'early': weights}}
  found = lm.score(model, base, more, tokens, mask, response_mask=response)
  plain = lm.score(model, base, adapter, tokens, mask)
  words = np.asarray(base['embed']['embedding'])[np.asarray(tokens)]
  first = jax.tree.map(lambda x: x[0], {
    'params': base['layers']['block'], 'adapter': adapter['layers']['block']})
  out, _ = Block(model.config).apply(
    first, words, masked.positions(mask), Rows(mask), layers_of(model.config)[0])
  for b, length in enumerate(LENGTHS):
    rows = np.concatenate([words[b], out[b]], -1)[3:length]
    expected = rows.mean(0) @ weights if length > 3 else 0.0
    np.testing.assert_allclose(found[b] - plain[b], expected, atol=1e-4)


def test_everything_that_a_head_reads_adds_up(made):
  """Heads that read it all, with weights of init: the function of a plain head; then a sum."""
  model, base, adapter = made
  tokens, mask = tiny.tokens(), tiny.right_mask(LENGTHS)
  made_head = adapters.init_head(
    jax.random.key(1), model.config.width, reads=adapters.HEAD_READS)
  width = model.config.width
  assert {k: v.shape for k, v in made_head.items() if k in adapters.HEAD_READS} == {
    'mean': (2 * width,), 'early': (2 * width,), 'likelihood': (4,)}
  ask = lambda **more: lm.score(
    model, base, {**adapter, 'head': adapter['head'] | more}, tokens, mask, response_mask=mask)
  mean, likely = made_head['mean'] + .1, made_head['likelihood'] - .3
  words = made_head['early'] + .2
  plain = ask()
  np.testing.assert_allclose(
    plain, ask(**{name: made_head[name] for name in adapters.HEAD_READS}), rtol=1e-5)
  np.testing.assert_allclose(
    ask(mean=mean, early=words, likelihood=likely) - plain,
    sum(ask(**one) - plain for one in (
      {'mean': mean}, {'early': words}, {'likelihood': likely})), atol=1e-4)


def test_a_head_that_is_to_read_something_else_is_refused():
  with pytest.raises(ValueError, match="some of .*, found 'mode'"):
    adapters.init_head(jax.random.key(0), 4, reads=('mode',))
