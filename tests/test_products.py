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
  return draw(*shape, 6), draw(6, 2), draw(2, 5), jnp.float32(1.7)


@pytest.mark.parametrize('shape', [(), (3,), (2, 3), (2, 3, 4)])
def test_value_and_derivative(shape):
  given = inputs(shape)
  plain = lambda x, a, b, s: (x @ a) @ (s * b)
  np.testing.assert_array_equal(low_rank(*given), plain(*given))
  slopes = lambda f: jax.grad(lambda *y: jnp.sin(f(*y)).sum(), (0, 1, 2))(*given)
  tiny.close(slopes(low_rank), slopes(plain))


def test_under_vmap_over_a_and_b():
  x, a, b, scale = inputs((3,))
  stack = lambda y: jnp.stack([y, 2 * y, -y])
  grad = jax.grad(lambda x, a, b: jnp.sin(low_rank(x, a, b, scale)).sum(), (1, 2))
  mapped = jax.vmap(grad, (None, 0, 0))(x, stack(a), stack(b))
  tiny.close(jax.tree.map(lambda g: g[1], mapped), grad(x, 2 * a, 2 * b))


@pytest.mark.parametrize('stored', [jnp.bfloat16, jnp.float32])
def test_types_of_derivatives_are_those_of_the_arguments(stored):
  x, a, b, scale = inputs((3,))
  x, a, b = x.astype(jnp.bfloat16), a.astype(stored), b.astype(stored)
  assert low_rank(x, a, b, scale).dtype == jnp.bfloat16
  grads = jax.grad(lambda *y: low_rank(*y, scale).astype(jnp.float32).sum(), (0, 1, 2))(x, a, b)
  assert [g.dtype for g in grads] == [jnp.bfloat16, stored, stored]


def test_the_scale_is_not_trained():
  assert jax.grad(lambda s: low_rank(*inputs((3,))[:3], s).sum())(jnp.float32(2.0)) == 0


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='the shape of a product on CPU')
def test_the_compiled_derivative_has_a_product_with_few_rows():
  x, a, b, scale = jnp.ones((64, 48)), jnp.ones((48, 2)), jnp.ones((2, 40)), jnp.float32(2.0)
  grad = jax.jit(jax.grad(lambda a: low_rank(x * 2, a, b, scale).sum()))
  products = [line for line in grad.lower(a).compile().as_text().splitlines() if ' dot(' in line]
  assert any('f32[2,48]' in line for line in products)
  assert not any('f32[48,2]' in line.split(' dot(')[0] for line in products)
