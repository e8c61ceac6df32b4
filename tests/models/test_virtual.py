"""Virtual tokens: a soft prompt is a prefix, whatever the rows, the windows and the packing."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl import trees
from perl.models import lm as eager
from perl.models.context import Rows
from perl.peft import adapters, composition
from perl.peft.methods.prefix import Prefix

KEY = jax.random.key(0)
lm = SimpleNamespace(  # each call one program: compiling every operation apart takes far longer
  logits=jax.jit(eager.logits, static_argnums=0),
  **{name: jax.jit(getattr(eager, name), static_argnums=0, static_argnames=('start', 'shared'))
     for name in ('logprobs', 'values', 'score')})
FAMILIES = ('llama', 'gpt2', 'gemma', 'qwen3', 'neox')


def soft(base, p=3, seed=0):
  return tiny.trained(adapters.init(KEY, base, 'prompt', virtual_tokens=p), 0.1, seed)


def prefix(base, p=3, seed=0, **options):
  made = adapters.init(KEY, base, 'prefix', virtual_tokens=p, **options)
  return tiny.trained(made, 0.3, seed)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_soft_prompt_of_a_tokens_embeddings_is_those_tokens(family):
  model, base = tiny.make(family)
  tokens, mask = tiny.tokens(3, 8), tiny.right_mask([8, 5, 6], 8)
  words = jnp.asarray([4, 9, 2])
  adapter = {'embed': {'prompt': adapters.init(KEY, base, 'prompt')['embed']['prompt'].replace(
    tokens=base['embed']['embedding'][words] * (4.0 if model.config.embed_scale else 1.0))}}
  found = lm.logits(model, base, adapter, tokens, mask)
  whole = jnp.concatenate([jnp.broadcast_to(words, (3, 3)), tokens], 1)
  seen = jnp.pad(mask, ((0, 0), (3, 0)), constant_values=True)
  expected = lm.logits(model, base, {}, whole, seen)
  real = np.asarray(mask)
  np.testing.assert_allclose(found[real], expected[:, 3:][real], atol=3e-5)


def test_a_prefix_is_seen_through_every_window():
  model, base = tiny.make('mistral')  # a window of 3 tokens
  tokens, mask = tiny.tokens(2, 9), jnp.ones((2, 9), bool)
  one, two = prefix(base, seed=0), prefix(base, seed=1)
  far = [lm.logits(model, base, a, tokens, mask)[:, -1] for a in (one, two)]
  assert np.abs(far[0] - far[1]).max() > 1e-3


@pytest.mark.parametrize('make', [soft, prefix])
@pytest.mark.parametrize('family', ['llama', 'mistral'])
def test_packed_texts_each_see_it_and_not_one_another(make, family):
  model, base = tiny.make(family)
  adapter = make(base)
  texts, rows = [tiny.tokens(1, n, seed=n)[0] for n in (5, 4)], []
  for text in texts:
    rows.append(lm.logprobs(model, base, adapter, text[None], jnp.ones((1, len(text)), bool))[0])
  packed, segments = jnp.concatenate(texts)[None], jnp.asarray([[0] * 5 + [1] * 4])
  whole = Rows(jnp.ones((1, 9), bool), segments, right_padded=True)
  found = lm.logprobs(model, base, adapter, packed, whole)[0]
  np.testing.assert_allclose(found, jnp.concatenate(rows), atol=2e-5)


@pytest.mark.parametrize('make', [soft, prefix])
def test_shared_prompts_and_single_columns_see_it(make):
  model, base = tiny.make('llama')
  adapter = make(base) | {'head': adapters.init_head(KEY, 16)}
  tokens = jnp.repeat(tiny.tokens(2, 9), 2, 0).at[:, 5:].set(tiny.tokens(4, 4, seed=1))
  mask = jnp.ones((4, 9), bool).at[1, 7:].set(False)
  for ask in (lm.logprobs, lm.values, lm.score):
    options = {} if ask is lm.score else {'start': 5}
    apart = ask(model, base, adapter, tokens, mask, **options)
    shared = ask(model, base, adapter, tokens, mask, start=5, shared=2)
    np.testing.assert_allclose(shared, apart, atol=2e-5)
  plain = lm.score(model, base, {'head': adapter['head']}, tokens, mask)
  assert np.abs(plain - lm.score(model, base, adapter, tokens, mask)).max() > 1e-3


def test_two_prompts_and_a_prefix_follow_one_another():
  """The one below first: as one prompt of both."""
  model, base = tiny.make('llama')
  tokens, mask = tiny.tokens(2, 6), jnp.ones((2, 6), bool)
  one, two = soft(base, 2, 0), soft(base, 3, 1)
  both = composition.over(base, one, two)
  joined = {'embed': {'prompt': one['embed']['prompt'].replace(tokens=jnp.concatenate(
    [a['embed']['prompt'].tokens for a in (one, two)]))}}
  ask = lambda adapter: lm.logits(model, base, adapter, tokens, mask)
  np.testing.assert_allclose(ask(both), ask(joined), atol=2e-5)
  mixed = composition.over(base, prefix(base), two)
  assert np.isfinite(ask(mixed)).all() and np.abs(ask(mixed) - ask(two)).max() > 1e-3


def test_a_network_of_prefixes_is_the_prefix_it_makes():
  model, base = tiny.make('llama')
  adapter = prefix(base, prefix_width=4)
  made = trees.spread(base, adapter)
  assert isinstance(made['layers']['block']['attn']['prefix'], Prefix)
  tokens, mask = tiny.tokens(2, 6), jnp.ones((2, 6), bool)
  ask = lambda adapter: eager.logits(model, base, adapter, tokens, mask)
  np.testing.assert_array_equal(ask(adapter), ask(made))
  shapes = {n.split('/')[-1]: x.shape for n, x in trees.flat(adapter).items()}
  assert shapes == {'e': (3, 16), 'w_in': (16, 4), 'b_in': (4,), 'w_out': (2, 4, 16),
                    'b_out': (2, 16)}


def test_a_prompt_over_a_prefix_of_some_layers_is_refused():
  model, base = tiny.make('llama')
  both = composition.over(base, prefix(base, top_layers=1), soft(base))
  with pytest.raises(ValueError, match='expected a prefix of all 2 layers'):
    lm.logits(model, base, both, tiny.tokens(), tiny.right_mask([10, 7, 1, 4]))


def test_learnt_positions_count_virtual_tokens():
  model, base = tiny.make('gpt2', max_positions=10)
  adapter = soft(base, 3)
  lm.logits(model, base, adapter, tiny.tokens(2, 7), jnp.ones((2, 7), bool))
  with pytest.raises(ValueError, match='expected at most 10 tokens.*found 11'):
    lm.logits(model, base, adapter, tiny.tokens(2, 8), jnp.ones((2, 8), bool))
