"""Rotary positions: by hand, and out of a table as by the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl.models import lm, rope
from perl.models.rope import frequencies, rotate

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 3, 8)), jnp.float32)
POSITIONS = jnp.asarray([range(9), [0, 0, 0, 1, 2, 30, 30, 5, 11]], jnp.int32)


def test_a_quarter_turn_by_hand():
  x = jnp.asarray([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
  turned = rotate(x, jnp.ones((1, 1), jnp.int32), np.asarray([np.pi / 2, 0.0], np.float32))
  np.testing.assert_allclose(turned.ravel(), [-3.0, 2.0, 1.0, 4.0], atol=1e-6)


@pytest.mark.parametrize('fraction', [1.0, 0.5])
def test_a_table_gives_what_the_formula_gives(fraction):
  frequency = frequencies(8, 100.0, fraction=fraction)
  computed = rotate(X, POSITIONS, frequency, 1.1)
  np.testing.assert_allclose(rotate(X, POSITIONS, frequency, 1.1, 31), computed, atol=1e-5)
  traced = jax.jit(lambda f: rotate(X, POSITIONS, f, 1.1, 31))(frequency)
  np.testing.assert_allclose(traced, computed, atol=1e-5)


def test_a_table_that_would_be_too_large_is_not_made(monkeypatch):
  frequency = frequencies(8, 100.0)
  table = jax.make_jaxpr(lambda x: rotate(x, POSITIONS, frequency, 1.0, 31))(X)
  monkeypatch.setattr(rope, 'TABLE_BYTES', 4 * 31 * 4 - 1)
  formula = jax.make_jaxpr(lambda x: rotate(x, POSITIONS, frequency, 1.0, 31))(X)
  assert 'cos' in str(formula) and (' cos ' in str(table)) == (jax.default_backend() != 'cpu')


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='tables are for CPU')
def test_no_cosine_is_left_in_a_compiled_forward_pass():
  """XLA would compute one for each head and use."""
  model, base = tiny.make('llama')
  tokens = tiny.tokens(2, 6)
  forward = jax.jit(lambda base, tokens: lm.logprobs(model, base, {}, tokens, tokens > 0))
  assert ' cosine(' not in forward.lower(base, tokens).compile().as_text()
