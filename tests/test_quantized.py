"""Quantized kernels: published tables, blocks by hand, errors on normals, bits, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
import tiny

from perl import trees
from perl.products import dense
from perl.quantization import quantize, quantize_tree
from perl.quantized import (
  FP4,
  KINDS,
  NF4,
  TABLES,
  Quantized,
  Scheme,
  bits_per_parameter,
  is_quantized,
  scheme_of,
)

SCHEMES = [Scheme(kind, 8, double) for kind in KINDS for double in (False, True)]
SOME = [Scheme('nf4', 8), Scheme('fp4', 8, True), Scheme('int4', 8), Scheme('int8', 8, True)]


def qarray(w):
  """The same kernel as qwix's tiled array, a code an element; not of fp4, which qwix lacks."""
  if w.scheme.kind == 'int8':
    return qwix.QArray(w.codes, w.scales())
  *lead, rows, columns = w.shape
  codes = w.codes.reshape(*lead, rows // w.block, -1, columns)
  codes = jnp.concatenate([codes & 15, codes >> 4], -2).reshape(w.shape)
  if w.scheme.kind == 'nf4':
    return qwix.QArray(codes.astype(jnp.uint4), w.scales(), qtype='nf4')
  signed = jnp.where(codes > 7, codes.astype(jnp.int8) - 16, codes)
  return qwix.QArray(signed.astype(jnp.int4), w.scales())


def normals(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_tables_are_the_published_ones():
  """NF4 of QLoRA, appendix E; FP4 of bitsandbytes' kernels."""
  half = [0, 0.0052083333, 0.6666667, 1.0, 0.3333333, 0.5, 0.1666667, 0.25]
  np.testing.assert_allclose(FP4, [*half, *(-x for x in half)], atol=1e-7)
  assert NF4[0] == -1 and NF4[7] == 0 and NF4[15] == 1 and sorted(NF4) == list(NF4)
  np.testing.assert_array_equal(
    np.float32(NF4), qwix.dequantize(qwix.QArray(
      jnp.arange(16).astype(jnp.uint4), jnp.ones(1), qtype='nf4')))


@pytest.mark.parametrize('kind, codes, values, unit', [
  ('nf4', [15 + 16 * 10, 2 + 16 * 7], [1.0, -0.5250730514526367, 0.24611230194568634, 0.0], 2.0),
  ('fp4', [3 + 16 * 7, 13], [1.0, -0.5, 0.25, 0.0], 2.0),
  ('int4', [7 + 16 * 2, 12], [7, -4, 2, 0], 2 / 7.5),
  ('int8', [127, -64, 32, 0], [127, -64, 32, 0], 2 / 127.5),
])
def test_a_block_by_hand(kind, codes, values, unit):
  """Rows 0 and 1 in the lower four bits, rows 2 and 3 in the upper ones; absmax is 2."""
  w = quantize(jnp.asarray([[2.0], [-1.0], [0.5], [0.0]]), Scheme(kind, 4))
  np.testing.assert_array_equal(w.codes[:, 0], codes)
  np.testing.assert_allclose(w.scale, [[unit]], rtol=1e-6)
  np.testing.assert_allclose(w.dequantize()[:, 0], np.float32(values) * unit, rtol=1e-6)


def test_a_block_with_its_minimum_by_hand():
  """15 steps of a fifth from -1 to 2: codes 15, 0, 7 and 6."""
  x = jnp.asarray([[2.0], [-1.0], [0.4], [0.2]])
  w = quantize(x, Scheme('uint4', 4))
  np.testing.assert_array_equal(w.codes[:, 0], [15 + 16 * 7, 0 + 16 * 6])
  np.testing.assert_allclose([w.scale[0, 0], w.minimum[0, 0]], [0.2, -1.0], rtol=1e-6)
  np.testing.assert_allclose(w.dequantize(), x, atol=1e-6)


@pytest.mark.parametrize('kind, error', [
  ('nf4', 0.0728), ('fp4', 0.0966), ('int4', 0.0878), ('int8', 0.00517)])
def test_the_mean_error_on_normals(kind, error):
  """bitsandbytes' tests allow 0.0728 for nf4 and 0.0965 for fp4 at blocks of 64."""
  x = normals(1024, 512)
  apart = jnp.abs(quantize(x, Scheme(kind)).dequantize() - x).mean()
  np.testing.assert_allclose(apart, error, rtol=5e-3)


@pytest.mark.parametrize('kind, double, bits', [
  ('nf4', False, 4.5), ('nf4', True, 4.127), ('fp4', True, 4.127), ('int4', False, 4.5),
  ('uint4', False, 5.0), ('int8', False, 8.5), ('int8', True, 8.127)])
def test_bits_a_parameter_are_measured_on_the_buffers(kind, double, bits):
  """4 + 32 / 64, and with double quantization 4 + 8 / 64 + 32 / (64 * 256) (QLoRA, section 3)."""
  w = quantize(jnp.zeros((2, 1024, 512)).at[:, ::7].set(1.0), Scheme(kind, 64, double))
  held = sum(x.nbytes for x in jax.tree.leaves(w))
  assert bits_per_parameter({'kernel': w}) == 8 * held / w.size
  assert round(bits_per_parameter(w), 3) == bits


@pytest.mark.parametrize('kind', ['nf4', 'int4', 'int8'])
@pytest.mark.parametrize('double', [False, True])
def test_qwix_reads_the_same_numbers_and_finds_the_same_codes(kind, double):
  x = normals(64, 12)
  w = quantize(x, Scheme(kind, 16, double))
  np.testing.assert_array_equal(qwix.dequantize(qarray(w)), w.dequantize())
  theirs = qwix.quantize(
    x, 'nf4' if kind == 'nf4' else jnp.dtype(kind), channelwise_axes=(1,), tiled_axes={0: 16})
  np.testing.assert_array_equal(theirs.qvalue.astype(int), qarray(w).qvalue.astype(int))
  if not double:
    np.testing.assert_array_equal(theirs.scale, w.scale)


@pytest.mark.parametrize('kind', KINDS)
def test_every_value_is_the_nearest_code_s(kind):
  x = normals(32, 5)
  w = quantize(x, Scheme(kind, 8))
  table = TABLES.get(kind, range(-128, 128))
  values = np.float32(table)[:, None, None] * np.repeat(np.asarray(w.scale), 8, 0)
  values += 0 if w.minimum is None else np.repeat(np.asarray(w.minimum), 8, 0)
  nearest = np.abs(values - np.asarray(x)).min(0)
  np.testing.assert_allclose(jnp.abs(w.dequantize() - x), nearest, rtol=1e-5, atol=1e-5)


def test_double_quantization_rounds_scales_within_their_blocks():
  """Each scale is within half a step of its block of 256, and is never below 0."""
  x = normals(256, 96, seed=1) * jnp.geomspace(1e-3, 1.0, 96)
  plain, double = (quantize(x, Scheme('nf4', 32, d)) for d in (False, True))
  np.testing.assert_array_equal(plain.codes, double.codes)
  assert double.scale.dtype == jnp.int8 and double.second.shape == (3,)
  np.testing.assert_allclose(double.mean, plain.scale.mean(), rtol=1e-2)
  step = np.repeat(double.second, 256).reshape(plain.scale.shape)
  assert np.all(np.abs(plain.scale - double.scales()) <= 0.51 * step)
  assert np.all(double.scales() >= 0)


def test_a_block_of_zeros_stays_zero_and_harms_no_other():
  x = normals(64, 8).at[8:16].set(0.0)
  for kind in KINDS:
    for double in (False, True):
      found = quantize(x, Scheme(kind, 8, double)).dequantize()
      assert not found[8:16].any()
      np.testing.assert_allclose(found, x, atol=0.5)
  np.testing.assert_array_equal(
    quantize(jnp.zeros((8, 3)), Scheme('nf4', 8, True)).dequantize(), jnp.zeros((8, 3)))


@pytest.mark.parametrize('scheme', SOME, ids=lambda s: s.tag)
def test_a_stack_is_its_layers(scheme):
  """Sliced, scanned and mapped; second blocks do not reach from one layer into the next."""
  x = normals(3, 16, 6)
  w = quantize(x, scheme)
  assert w.shape == x.shape and w.ndim == 3 and w.size == x.size and w.dtype == x.dtype
  values = w.dequantize()
  layer = jax.tree.map(lambda a: a[1], w)
  assert layer.shape == (16, 6) and layer.block == 8
  np.testing.assert_array_equal(layer.dequantize(), values[1])
  np.testing.assert_array_equal(quantize(x[1], scheme).dequantize(), values[1])
  rows = normals(3, 2, 16)
  expected = jnp.stack([r @ v for r, v in zip(rows, values)])
  scanned = jax.lax.scan(lambda _, one: (None, one[0] @ one[1]), None, (rows, w))[1]
  tiny.close(scanned, expected)
  tiny.close(jax.vmap(lambda r, w: r @ w)(rows, w), expected)
  tiny.close(jax.vmap(lambda r: r @ layer)(rows), rows @ values[1])


@pytest.mark.parametrize('scheme', SOME, ids=lambda s: s.tag)
def test_a_product_and_its_gradient_are_the_dense_ones(scheme):
  w, x = quantize(normals(16, 6), scheme), normals(4, 3, 16, seed=1)
  loss = lambda x, w: jnp.sin(x @ w).sum()
  np.testing.assert_array_equal(x @ w, x @ dense(w))
  for function in (jax.grad(loss), jax.jit(jax.grad(loss))):
    np.testing.assert_allclose(function(x, w), jax.grad(loss)(x, dense(w)), rtol=1e-5, atol=1e-5)
  half = w.astype(jnp.bfloat16)
  assert (x.astype(jnp.bfloat16) @ half).dtype == jnp.bfloat16
  assert jax.grad(loss)(x.astype(jnp.bfloat16), w).dtype == jnp.bfloat16
  assert half.codes is w.codes and half.dtype == jnp.bfloat16


def test_no_dense_kernel_is_kept_for_the_backward_pass(optimized):
  """None is a residual, and of a loop over layers the program holds one at a time."""
  layers, width = 6, 256
  w, x = quantize(normals(layers, width, width), Scheme('nf4', 64, True)), normals(2, width)

  def loss(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

  residuals = lambda w: jax.tree.leaves(
    jax.eval_shape(lambda x: jax.vjp(lambda x: loss(x, w), x)[1], x))
  large = lambda w: {k.dtype for k in residuals(w) if k.size >= width**2}
  assert large(w) == {jnp.dtype('uint8')} and large(dense(w)) == {jnp.dtype('float32')}
  compiled = jax.jit(jax.grad(loss)).lower(x, w).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * 4 * width**2


@pytest.mark.parametrize('kind', KINDS)
def test_every_program_finds_the_same_values(kind, optimized):
  """Fused or not: double-quantized scales are sums of exact products."""
  w = quantize(normals(4, 64, 32), Scheme(kind, 16, True))
  found = jax.jit(lambda w: (w.scales(), w.dequantize()))(w)
  tiny.equal(found, (w.scales(), w.dequantize()))
  layer = jax.tree.map(lambda x: x[2], w)
  tiny.equal(jax.jit(lambda w: w.dequantize())(layer), found[1][2])


@pytest.mark.parametrize('rows, kind, block', [
  (24, 'nf4', 24), (96, 'nf4', 48), (64, 'int8', 64), (130, 'nf4', 26), (65, 'int8', 13),
  (67, 'int8', 1)])
def test_blocks_that_do_not_divide_become_the_largest_divisor(rows, kind, block):
  found = quantize(normals(rows, 3), Scheme(kind))
  assert found.block == block and found.shape == (rows, 3)


@pytest.mark.parametrize('shape, scheme, match', [
  ((9, 4), Scheme('nf4'), 'an even number of inputs'),
  ((8, 4), Scheme('nf4', 1), 'a block of at least 2'),
  ((8,), Scheme('int8'), 'expected a matrix'),
  ((8, 4), Scheme('nf3'), "expected a kind among .*found 'nf3'"),
])
def test_what_cannot_be_quantized_is_refused(shape, scheme, match):
  with pytest.raises(ValueError, match=match):
    quantize(jnp.ones(shape), scheme)


def test_a_stack_is_no_factor():
  with pytest.raises(ValueError, match='one quantized matrix'):
    normals(2, 8) @ quantize(normals(3, 8, 4), Scheme('nf4', 8))


def test_of_a_base_the_projections_of_layers_are_quantized():
  base = {
    'embed': {'embedding': normals(5, 8), 'lm_head': {'kernel': normals(8, 5)}},
    'layers': {'block': {'attn': {'q': {'kernel': normals(2, 8, 4), 'bias': normals(2, 4)}},
                         'attn_norm': {'scale': normals(2, 8)}}},
  }
  scheme = Scheme('nf4', 8, True)
  made = quantize_tree(base, scheme)
  leaves, plain = trees.flat(made), trees.flat(base)
  assert list(leaves) == list(plain) and quantize_tree(base, None) is base
  assert [n for n in leaves if is_quantized(leaves[n])] == ['layers/block/attn/q/kernel']
  assert scheme_of(made) == scheme and scheme_of(base) is None
  assert trees.count(made) == trees.count(base)
  assert trees.size_bytes(made) == sum(x.nbytes for x in jax.tree.leaves(made))
  like = quantize_tree(jax.eval_shape(lambda: base), scheme, like=True)
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(like) == shapes(made)
  assert trees.count(like) == trees.count(made)
  cast = trees.cast(made, jnp.bfloat16)
  assert {x.dtype for x in trees.flat(cast).values()} == {jnp.dtype('bfloat16')}
  assert trees.flat(cast)['layers/block/attn/q/kernel'].codes.dtype == jnp.uint8
  with pytest.raises(ValueError, match='in full precision to quantize as nf4-8-double'):
    quantize_tree(made, scheme)


def test_a_digest_tells_every_scheme_and_bit():
  x = {'layers': {'q': {'kernel': normals(16, 4)}}}
  made = [quantize_tree(x, s) for s in (*SCHEMES, Scheme('nf4', 4), Scheme('nf4', 16))]
  assert len({trees.digest(tree) for tree in (x, *made)}) == len(made) + 1
  w = made[0]['layers']['q']['kernel']
  other = {'layers': {'q': {'kernel': w.replace(codes=w.codes.at[0, 0].add(1))}}}
  assert trees.digest(other) != trees.digest(made[0])
  assert trees.digest(jax.tree.map(jnp.copy, made[0])) == trees.digest(made[0])
  assert isinstance(w, Quantized) and Scheme('nf4', 64, True).of('ab') == 'nf4-64-double:ab'
