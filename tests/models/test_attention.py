"""Laws of attention: every implementation is the formula, and padding changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl.models import blocked
from perl.models.attention import attention

CASES = {
    'causal': {},
    'full': {'causal': False},
    'window': {'window': 5},
    'wide_window': {'window': 66},
    'window_as_data': {'window': jnp.int32(9)},
    'window_both_sides': {'window': 7, 'causal': False},
    'softcap': {'softcap': 2.0},
    'softcap_window': {'softcap': 2.0, 'window': 9, 'scale': 0.7},
}


def inputs(b=2, t=70, h=4, g=2, k=8, dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  q, k_, v = (
      jnp.asarray(rng.normal(size=(b, t, n, k)), dtype) for n in (h, g, g)
  )
  mask = np.ones((b, t), bool)
  mask[0, t - t // 3 :] = False  # right padding
  mask[-1, : t // 4] = False  # left padding: the first queries see nothing
  return q, k_, v, jnp.asarray(mask)


def gradients(impl, q, k, v, mask, **options):
  """d/d(q, k, v) of a fixed linear function of the output of the real queries."""
  def total(q, k, v):
    out = attention(q, k, v, mask, impl=impl, **options).astype(jnp.float32)
    weights = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    return jnp.sum(out * weights * mask[:, :, None, None])

  return jax.jit(jax.grad(total, (0, 1, 2)))(q, k, v)


def test_two_keys_by_hand():
  q = jnp.zeros((1, 2, 1, 4)).at[0, 1, 0, 0].set(2.0)
  k = jnp.zeros((1, 2, 1, 4)).at[0, 1, 0, 0].set(np.log(3.0))
  v = jnp.asarray([4.0, 8.0]).reshape(1, 2, 1, 1) * jnp.ones((1, 2, 1, 4))
  out = attention(q, k, v, jnp.ones((1, 2), bool))  # weights 1; then 1/4, 3/4 (scale 1/2)
  np.testing.assert_allclose(out[0, :, 0, 0], [4.0, 7.0], rtol=1e-6)


@pytest.mark.parametrize('impl', ['blocked', 'xla', 'auto'])
@pytest.mark.parametrize('case', CASES)
def test_every_implementation_is_the_formula(impl, case):
  q, k, v, mask = inputs()
  call = jax.jit(functools.partial(attention, **CASES[case]), static_argnames='impl')
  expected, found = (call(q, k, v, mask, impl=x) for x in ('reference', impl))
  np.testing.assert_allclose(found, expected, atol=2e-6)
  for a, b in zip(
      gradients(impl, q, k, v, mask, **CASES[case]),
      gradients('reference', q, k, v, mask, **CASES[case]),
  ):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize('g', [1, 4])
@pytest.mark.parametrize('t', [1, 64, 65])
def test_heads_and_lengths(g, t):
  q, k, v, _ = inputs(t=t, g=g)
  mask = jnp.ones((2, t), bool)
  expected = attention(q, k, v, mask, impl='reference')
  np.testing.assert_allclose(attention(q, k, v, mask, impl='blocked'), expected, atol=2e-6)


@pytest.mark.parametrize('impl', ['reference', 'blocked', 'xla'])
def test_a_query_that_sees_nothing_gives_zero_and_no_gradient(impl):
  q, k, v, mask = inputs(t=70)
  mask = mask.at[1].set(False)
  def total(q, k, v):
    return jnp.sum(jnp.square(attention(q, k, v, mask, impl=impl)))

  out = attention(q, k, v, mask, impl=impl)
  assert not out[1].any()
  for grad in jax.grad(total, (0, 1, 2))(q, k, v):
    assert jnp.isfinite(grad).all()
    assert not grad[1].any()


@pytest.mark.parametrize('impl', ['reference', 'blocked', 'xla'])
def test_padding_and_what_lies_in_it_change_nothing(impl):
  q, k, v, mask = inputs(t=20)
  mask = jnp.ones_like(mask)
  short = attention(q, k, v, mask, impl=impl)
  pad = lambda x, left, right: jnp.pad(
      x, ((0, 0), (left, right)) + ((0, 0),) * (x.ndim - 2), constant_values=7
  )
  for left, right in ((0, 50), (50, 0)):
    seen = jnp.pad(mask, ((0, 0), (left, right)))
    long = attention(*(pad(x, left, right) for x in (q, k, v)), seen, impl=impl)
    np.testing.assert_allclose(long[:, left : left + 20], short, atol=2e-6)


@pytest.mark.parametrize('impl', ['blocked', 'xla'])
def test_bfloat16(impl):
  q, k, v, mask = inputs(dtype=jnp.bfloat16)
  exact = attention(*(x.astype(jnp.float32) for x in (q, k, v)), mask, impl='reference')
  out = attention(q, k, v, mask, impl=impl)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)
  for grad in gradients(impl, q, k, v, mask):
    assert grad.dtype == jnp.bfloat16
    assert jnp.isfinite(grad.astype(jnp.float32)).all()


def test_blocked_keeps_nothing_of_the_size_of_the_scores():
  q, k, v, mask = inputs(t=256)
  call = functools.partial(attention, mask=mask, impl='blocked')
  _, backward = jax.vjp(call, q, k, v)
  largest = max(x.size for x in jax.tree.leaves(backward))
  assert largest <= q.size


@pytest.mark.parametrize('rows', [8, 24, 22])
def test_groups_of_rows_are_the_formula(rows, monkeypatch):
  monkeypatch.setattr(blocked, 'CACHED_BYTES', 1)  # one row a device: the most groups there can be
  q, k, v, mask = inputs(b=rows)
  groups = -(-rows // jax.device_count())
  assert ('scan' in str(jax.make_jaxpr(
      functools.partial(attention, impl='blocked'))(q, k, v, mask))) == (groups > 1)
  np.testing.assert_allclose(
      attention(q, k, v, mask, impl='blocked'), attention(q, k, v, mask, impl='reference'),
      atol=2e-5)
  for found, expected in zip(
      gradients('blocked', q, k, v, mask), gradients('reference', q, k, v, mask)):
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_vmap_is_a_loop():
  q, k, v, mask = (jnp.stack(x) for x in zip(inputs(seed=1), inputs(seed=2)))
  grads = jax.jit(functools.partial(gradients, 'blocked'))
  loop = [grads(*x) for x in zip(q, k, v, mask)]
  for found, *expected in zip(jax.vmap(grads)(q, k, v, mask), *loop):
    np.testing.assert_allclose(found, jnp.stack(expected), atol=1e-5)


def test_sharded_over_batch_and_heads():
  devices = jax.devices()
  if len(devices) < 8:
    pytest.skip('needs 8 devices (XLA_FLAGS=--xla_force_host_platform_device_count=8)')
  mesh = jax.make_mesh((4, 2), ('data', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  spec = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
  q, k, v, mask = inputs(b=4)
  heads = spec('data', None, 'tensor')
  call = jax.jit(
      functools.partial(gradients, 'blocked'),
      in_shardings=(heads, heads, heads, spec('data')),
  )
  for found, expected in zip(call(q, k, v, mask), gradients('reference', q, k, v, mask)):
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize('impl', ['blocked', 'xla'])
@pytest.mark.parametrize('case', ['causal', 'window', 'window_as_data', 'softcap'])
def test_queries_that_begin_later_are_rows_of_the_whole(impl, case):
  if impl == 'xla' and case == 'softcap':
    pytest.skip('goes to the reference')
  q, k, v, mask = inputs()
  whole = attention(q, k, v, mask, impl='reference', **CASES[case])
  some = attention(q[:, 3:69], k, v, mask, impl=impl, offset=3, **CASES[case])
  np.testing.assert_allclose(some, whole[:, 3:69], atol=2e-6)


@pytest.mark.parametrize('impl', ['reference', 'blocked', 'xla'])
def test_texts_packed_into_a_row_do_not_see_one_another(impl):
  q, k, v, _ = inputs()
  segments = jnp.asarray([[1] * 30 + [2] * 40, [1] * 5 + [2] * 60 + [0] * 5], jnp.int32)
  call = functools.partial(attention, impl=impl)
  packed = call(q, k, v, segments > 0, segments=(segments, segments))
  for row, start, stop in ((0, 0, 30), (0, 30, 70), (1, 0, 5), (1, 5, 65)):
    *own, expected = (x[row : row + 1, start:stop] for x in (q, k, v, packed))
    alone = call(*own, jnp.ones((1, stop - start), bool))
    np.testing.assert_allclose(alone, expected, atol=2e-6)


@pytest.mark.parametrize('impl', ['reference', 'blocked', 'xla'])
@pytest.mark.parametrize('window', [None, 5])
def test_rows_padded_on_the_right_need_no_mask(impl, window):
  q, k, v, _ = inputs()
  mask = jnp.arange(70) < jnp.asarray([70, 41])[:, None]
  with_mask = gradients('reference', q, k, v, mask, window=window)
  total = lambda q, k, v: jnp.sum(
    attention(q, k, v, None, window=window, impl=impl)
    * jnp.sin(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape) * mask[:, :, None, None])
  for a, b in zip(jax.jit(jax.grad(total, (0, 1, 2)))(q, k, v), with_mask):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'mask': jnp.ones((2, 3), bool)}, 'mask'),
        ({'k': jnp.ones((2, 70, 3, 8)), 'v': jnp.ones((2, 70, 3, 8))}, 'heads'),
        ({'impl': 'fast'}, 'impl'),
    ],
)
def test_what_does_not_fit_is_named(change, message):
  call = dict(zip(('q', 'k', 'v', 'mask'), inputs()))
  with pytest.raises(ValueError, match=message):
    attention(**{**call, **change})
