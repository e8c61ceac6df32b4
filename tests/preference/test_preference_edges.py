"""Preference losses at their edges: no finite log-prob gives NaN, forward or backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perl import choices
from perl.config import schema
from perl.preference import methods

B = 3
LOGPROBS = st.one_of(
  st.floats(-50.0, 0.0, width=32), st.sampled_from([-0.0, -1e-30, -88.8, -1e3, -1e6, -1e15]))
LISTS = st.lists(LOGPROBS, min_size=B, max_size=B)


@functools.cache
def compiled(name):
  """(four rows of log-probs f32[B], tokens f32[B]) -> (loss, its gradient), jitted."""
  method = methods.find(name)(**schema.get_config().preference.get(name, {}))

  def loss(now, reference, tokens):
    of = lambda i: methods.Responses(now[i], reference[i], tokens)
    if method.examples == 'preference':
      return method.loss(of(0), of(1)).sum()
    return method.loss(of(0), jnp.asarray([1.0, 0.0, 1.0]), jax.lax.stop_gradient(
      jnp.clip(of(1).ratio.mean(), 0.0))).sum()

  return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize('name', choices.names('perl.preference.methods'))
@settings(max_examples=25, deadline=None)
@given(LISTS, LISTS, LISTS, LISTS, st.lists(st.integers(1, 4096), min_size=B, max_size=B))
def test_no_finite_log_probs_give_nan(name, chosen, rejected, before, other, tokens):
  now, reference = (jnp.asarray(x, jnp.float32) for x in ((chosen, rejected), (before, other)))
  value, slope = compiled(name)(now, reference, jnp.asarray(tokens, jnp.float32))
  assert not np.isnan(value) and np.isfinite(slope).all()
