"""The loop over layers: no copy of the base, no gradient of it, and what each remat keeps."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl import trees
from perl.models import lm, stack
from perl.models.config import REMAT, Config
from perl.models.transformer import Transformer
from perl.peft import adapters

# Heavy weights, few tokens: a copy of the base would be most of a program's memory.
HEAVY = Config(
  vocab_size=64, layers=8, width=96, heads=4, kv_heads=4, head_dim=24, mlp_width=320, scan_unroll=1)
LONG = Config(
  vocab_size=64, layers=16, width=32, heads=2, kv_heads=2, head_dim=16, mlp_width=96, scan_unroll=1)


def compiled_gradient(config, method='lora', rows=1, length=7, ask='logprobs'):
  """The compiled d loss / d adapter, with the base as an argument; nothing is allocated."""
  model = Transformer(config)
  base = lm.abstract(model)
  options = {} if method == 'full' else {'rank': 2}
  adapter = jax.eval_shape(
    lambda b: adapters.init(jax.random.key(0), b, method, head=True, **options), base)
  tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
  mask = jax.ShapeDtypeStruct((rows, length), bool)

  def loss(trained, fixed, base, tokens, mask):
    adapter = trees.combine(trained, fixed)
    return getattr(lm, ask)(model, base, adapter, tokens, mask).sum()

  trained, fixed = adapters.split(adapter)
  compiled = jax.jit(jax.grad(loss)).lower(trained, fixed, base, tokens, mask).compile()
  return base, compiled


def shapes_of_products(compiled) -> set[tuple[int, ...]]:
  """The shapes of the results of all products in the program."""
  found = re.findall(r'= f32\[([\d,]+)\][^ ]* dot\(', compiled.as_text())
  return {tuple(map(int, shape.split(','))) for shape in found}


def kernels(base) -> set[tuple[int, ...]]:
  return {leaf.shape[-2:] for name, leaf in trees.flat(base).items() if name.endswith('/kernel')}


@pytest.mark.parametrize('remat', REMAT)
@pytest.mark.parametrize('unroll', [1, 8])
def test_no_gradient_of_a_frozen_weight_is_ever_formed(remat, unroll):
  """A product whose result is as large as a kernel is the gradient of one."""
  base, compiled = compiled_gradient(
    Config(**{**vars(HEAVY), 'remat': remat, 'scan_unroll': unroll}))
  products = {shape[-2:] for shape in shapes_of_products(compiled)}
  assert products and not products & (kernels(base) | {s[::-1] for s in kernels(base)})


def test_full_tuning_forms_them():
  """So that the law above can fail."""
  base, compiled = compiled_gradient(HEAVY, method='full')
  found = {tuple(sorted(s[-2:])) for s in shapes_of_products(compiled)}
  assert {tuple(sorted(s)) for s in kernels(base)} <= found


@pytest.mark.parametrize('remat', REMAT)
@pytest.mark.parametrize('ask', ['logprobs', 'score'])
def test_training_an_adapter_copies_no_base(remat, ask, monkeypatch):
  """Two layers' weights at most: one in the loop, and the last, which stands apart."""
  monkeypatch.setattr(stack, 'COPIED_BYTES', 0)  # as on accelerators, and with a larger base
  base, compiled = compiled_gradient(Config(**{**vars(HEAVY), 'remat': remat}), ask=ask)
  temporaries = compiled.memory_analysis().temp_size_in_bytes
  assert temporaries < 0.6 * trees.size_bytes(base)


def test_a_copied_base_changes_no_gradient(monkeypatch):
  model, base = tiny.make('llama', layers=4)
  adapter = tiny.trained(tiny.lora(base))
  tokens, mask = tiny.tokens(), tiny.right_mask([10, 7, 1, 4])
  gradient = lambda a: jax.jit(jax.grad(
    lambda a: lm.score(model, base, a, tokens, mask).sum()))(a)
  copied = gradient(adapter)
  monkeypatch.setattr(stack, 'COPIED_BYTES', 0)
  tiny.close(copied, gradient(adapter), atol=1e-5)


@pytest.mark.parametrize('options', [
  {}, {'layers': stack.UNROLLED_LAYERS, 'scan_unroll': 0}], ids=['a loop', 'few layers'])
def test_each_remat_keeps_less_than_the_one_before(options):
  sizes = [
    compiled_gradient(Config(**{**vars(LONG), **options, 'remat': remat}), rows=4, length=256)[1]
    .memory_analysis().temp_size_in_bytes for remat in (REMAT[::3] if options else REMAT)]
  assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0] / 3, sizes


def test_the_first_layers_output_alone_is_kept_for_an_early_head():
  """Not the output of every layer."""
  model, base = tiny.make('llama', layers=8)
  adapter = tiny.lora(base)
  tokens, mask = tiny.tokens(), tiny.right_mask([10, 7, 1, 4])
  ask = lambda base: lm.head_features(
    model, base, adapter, tokens, mask, reads=('early',), response_mask=mask)
  found = jax.make_jaxpr(ask)(base)
  stacked = [v.aval.shape for e in found.jaxpr.eqns for v in e.outvars if v.aval.shape[:1] == (8,)]
  assert (8, 4, 10, model.config.width) not in stacked
  np.testing.assert_array_less(0, jnp.abs(ask(base)).max())
