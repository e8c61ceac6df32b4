"""The hand-written derivative of (x A) B is the derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl.products import low_rank


def inputs(shape):
  rng = np.random.default_rng(0)
  draw = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)
  return draw(*shape, 6), draw(6, 2), draw(2, 5)


@pytest.mark.parametrize('shape', [(), (3,), (2, 3), (2, 3, 4)])
def test_value_and_derivative(shape):
  x, a, b = inputs(shape)
  plain = lambda x, a, b: jnp.sin((x @ a) @ b).sum()
  ours = lambda x, a, b: jnp.sin(low_rank(x, a, b)).sum()
  np.testing.assert_array_equal(low_rank(x, a, b), (x @ a) @ b)
  tiny.close(jax.grad(ours, (0, 1, 2))(x, a, b), jax.grad(plain, (0, 1, 2))(x, a, b))


def test_under_vmap_over_a_and_b():
  x, a, b = inputs((3,))
  stack = lambda y: jnp.stack([y, 2 * y, -y])
  grad = jax.grad(lambda x, a, b: jnp.sin(low_rank(x, a, b)).sum(), (1, 2))
  mapped = jax.vmap(grad, (None, 0, 0))(x, stack(a), stack(b))
  tiny.close(jax.tree.map(lambda g: g[1], mapped), grad(x, 2 * a, 2 * b))


def test_types_of_derivatives_are_those_of_the_arguments():
  x, a, b = (y.astype(jnp.bfloat16) for y in inputs((3,)))
  grads = jax.grad(lambda *y: low_rank(*y).astype(jnp.float32).sum(), (0, 1, 2))(x, a, b)
  assert [g.dtype for g in grads] == [jnp.bfloat16] * 3
