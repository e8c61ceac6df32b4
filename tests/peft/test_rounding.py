"""What merging rounds away is measured, and above a twentieth nothing is merged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl import trees
from perl.peft import adapters, rounding, task_arithmetic
from perl.quantization import quantize_tree
from perl.quantized import Scheme


def base_of(dtype, width=512):
  """A kernel of a size that real ones have: normal, of standard deviation 0.08."""
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(0.08 * rng.normal(size=(1, width, width)), dtype)
  return trees.nest({'layers/block/attn/q/kernel': kernel})


def lora_of(base, size, rank=8):
  """LoRA whose A is as it begins and whose B has entries of that size."""
  adapter = adapters.init(
    jax.random.key(0), base, 'lora', rank=rank, alpha=rank, targets=('attn/q',))
  node = adapter['layers']['block']['attn']['q']['kernel']
  rng = np.random.default_rng(1)
  b = size * rng.choice([-1.0, 1.0], node.b.shape)
  adapter['layers']['block']['attn']['q']['kernel'] = node.replace(b=jnp.asarray(b, jnp.float32))
  return adapter


def by_hand(base, adapter):
  """The same figure in float64, of numpy alone."""
  w = np.asarray(base['layers']['block']['attn']['q']['kernel'].astype(jnp.float32), np.float64)
  node = adapter['layers']['block']['attn']['q']['kernel']
  change = float(np.ravel(node.scale)[0]) * np.einsum(
    'lir,lro->lio', np.asarray(node.a, np.float64), np.asarray(node.b, np.float64))
  merged = adapters.merge(base, adapter)['layers']['block']['attn']['q']['kernel']
  lost = np.asarray(merged.astype(jnp.float32), np.float64) - w - change
  return np.linalg.norm(lost) / np.linalg.norm(change)


@pytest.mark.parametrize('size, expected', [(1e-4, 0.97), (1e-2, 0.18)])
def test_bfloat16_rounds_a_small_update_away(size, expected):
  """The figures that a real model had."""
  base = base_of('bfloat16')
  adapter = lora_of(base, size)
  error = rounding.error(base, adapter)
  assert abs(error - expected) < 0.05
  np.testing.assert_allclose(error, by_hand(base, adapter), rtol=0.02)


def test_the_smaller_the_update_the_more_of_it_is_lost():
  base = base_of('bfloat16')
  errors = [rounding.error(base, lora_of(base, size)) for size in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)]
  assert errors == sorted(errors, reverse=True)
  held = [rounding.holds(base, lora_of(base, size)) for size in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)]
  assert held == [error <= rounding.LIMIT for error in errors] and not held[0] and held[-1]


def test_float32_holds_everything_unless_it_is_computed_in_bfloat16():
  base = base_of('float32')
  adapter = lora_of(base, 1e-4)
  assert rounding.error(base, adapter) < 1e-3 and rounding.holds(base, adapter)
  assert rounding.error(base, adapter, 'bfloat16') > 0.3
  assert not rounding.holds(base, adapter, 'bfloat16')


def test_nothing_changed_is_nothing_lost():
  for dtype in ('float32', 'bfloat16'):
    base = base_of(dtype)
    assert rounding.error(base, lora_of(base, 0.0)) == 0.0
    assert rounding.holds(base, lora_of(base, 0.0))


@pytest.mark.parametrize('method', ['lora', 'dora', 'full', 'vera', 'ia3', 'bitfit', 'lntuning'])
def test_every_method_that_can_be_merged_is_measured(method):
  _, base = tiny.make('gpt2', dtype='bfloat16', param_dtype='bfloat16')
  fresh = adapters.init(jax.random.key(0), base, method, rank=2, targets=('attn/(q|v)',))
  adapter = tiny.trained(fresh, 1e-5)
  if adapters.mergeable(base, adapter):
    assert 0.1 < rounding.error(base, adapter) < 2.0


def test_a_quantized_base_is_measured_against_what_it_dequantizes_to():
  base = quantize_tree(base_of('bfloat16'), Scheme('nf4', 8, False))
  assert rounding.error(base, lora_of(base_of('bfloat16'), 1e-4)) > 0.1


def test_a_task_vector_is_not_of_rounded_weights():
  base = base_of('bfloat16')
  vector = task_arithmetic.task_vector(base, lora_of(base, 1e-4))
  exact = task_arithmetic.task_vector(trees.cast(base, jnp.float32), lora_of(base, 1e-4))
  tiny.close(vector, exact, rtol=1e-3, atol=1e-9)
