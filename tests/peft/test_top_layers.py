"""Adapters of the last layers: what the compiled step computes and holds stops below them."""

import jax
import numpy as np
import pytest
import tiny

from perl import trees
from perl.forecast import flops
from perl.models import lm
from perl.objectives import losses
from perl.peft import adapters

L = 8
MODEL, BASE = tiny.make('llama', layers=L, remat='none', scan_unroll=1)
TOKENS, MASK = tiny.tokens(8, 32), tiny.right_mask([32] * 8, 32)


def gradient(method, top_layers):
  """The jitted gradient of the adapter, and what it is called with."""
  adapter = adapters.init(jax.random.key(0), BASE, method, rank=2, top_layers=top_layers)
  learnt, fixed = adapters.split(adapter)

  def loss(learnt, base):
    logprobs = lm.logprobs(MODEL, base, trees.combine(learnt, fixed), TOKENS, MASK)
    return losses.next_token(logprobs, MASK).total

  return jax.jit(jax.grad(loss)), learnt


def operations(method, top_layers):
  """Of products, in one layer's forward pass as a unit."""
  function, learnt = gradient(method, top_layers)
  kernels = sum(x[0].size for n, x in trees.flat(BASE).items() if n.endswith('kernel'))
  return flops.count(function.trace(learnt, BASE).jaxpr) / (2 * kernels * TOKENS.size)


def temporaries(method, top_layers):
  function, learnt = gradient(method, top_layers)
  analysis = function.lower(learnt, BASE).compile().memory_analysis()
  return analysis.temp_size_in_bytes


def attention():
  """Scores and sums of one layer's forward pass, in the same unit."""
  kernels = sum(x[0].size for n, x in trees.flat(BASE).items() if n.endswith('kernel'))
  return 2 * TOKENS.shape[1] * MODEL.config.heads * MODEL.config.head_dim / kernels


def test_each_layer_more_costs_two_more_passes_and_no_other_any():
  """Full tuning: dx and dW of a trained layer, five products in attention where forward has two."""
  found = [operations('topk', k) for k in (1, 2, 4, 8)]
  steps = np.diff(found) / np.diff([1, 2, 4, 8])
  np.testing.assert_allclose(steps, 2 + 2.5 * attention(), rtol=0.05)
  assert found[0] < 0.45 * found[-1]


def test_low_rank_adapters_of_the_last_layers_cost_one_more_pass_a_layer():
  step = operations('lora', 2) - operations('lora', 1)
  products = step - 2.5 * attention()
  assert 1.0 <= products <= 1.7  # dx, and what is of low rank
  assert operations('lora', 1) < operations('lora', 0) - 6 * step


def test_what_is_kept_for_the_backward_pass_is_of_the_last_layers_alone():
  one, two, four, all_of_them = (temporaries('topk', k) for k in (1, 2, 4, L))
  assert one < two < four < all_of_them
  assert one < 0.4 * all_of_them


def test_more_layers_than_there_are_is_refused():
  with pytest.raises(ValueError, match='expected at most 8 layers of this model, found 9'):
    adapters.init(jax.random.key(0), BASE, 'lora', top_layers=9)


def test_topk_alone_takes_a_quarter():
  adapter = adapters.init(jax.random.key(0), BASE, 'topk')
  assert adapter['layers']['block']['attn']['q']['kernel'].w.shape[0] == 2
  assert set(adapter) == {'layers', 'final_norm'}
