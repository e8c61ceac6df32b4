"""Mean: divided once, whatever way the data was cut up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl.types import Mean

VALUES = jnp.asarray([1.0, 2.0, 3.0, 10.0])


def test_by_hand():
  assert Mean.of(VALUES).value() == 4.0
  assert Mean.of(VALUES, jnp.asarray([True, True, True, False])).value() == 2.0
  assert Mean.of(VALUES, jnp.asarray([0.0, 0.0, 1.0, 3.0])).value() == 33 / 4
  assert Mean.of(VALUES, jnp.zeros(4)).value() == 0.0


@pytest.mark.parametrize('garbage', [np.nan, np.inf, -1e30])
def test_entries_of_no_weight_may_be_anything(garbage):
  mask = jnp.asarray([True, False, True, True])
  mean = lambda x: Mean.of(jnp.square(x), mask).value()
  dirty = VALUES.at[1].set(garbage)
  np.testing.assert_array_equal(mean(dirty), mean(VALUES))
  np.testing.assert_array_equal(jax.grad(mean)(VALUES.at[1].set(1e9)), jax.grad(mean)(VALUES))


def test_a_sum_of_parts_is_the_whole():
  weight = jnp.asarray([1.0, 0.0, 2.0, 1.0])
  parts = Mean.of(VALUES[:1], weight[:1]) + Mean.of(VALUES[1:], weight[1:])
  np.testing.assert_allclose(parts.value(), Mean.of(VALUES, weight).value())


def test_a_mask_is_broadcast_and_integers_are_floats():
  ints = jnp.asarray([[1, 2], [4, 8]])
  assert Mean.of(ints, jnp.asarray([[True], [False]])).value() == 1.5
  assert Mean.of(ints).value() == 3.75
