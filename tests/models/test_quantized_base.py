"""A model over quantized kernels: the model of their values, to train, decode, shard and merge."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from perl import trees
from perl.evaluate import merging
from perl.models import decode, lm, stack
from perl.objectives import losses
from perl.peft import adapters
from perl.products import dense
from perl.quantization import quantize_tree
from perl.quantized import Scheme, is_quantized, scheme_of
from perl.rl.rollout import rollout
from perl.train import optim, sharding, step

MASK = tiny.right_mask([10, 7, 1, 4])
BATCH = {'tokens': tiny.tokens(), 'mask': MASK}


@pytest.fixture(scope='module', params=['nf4', 'int8'])  # tables in bytes, and codes as they are
def case(request):
  model, plain = tiny.make('gpt2')
  scheme = Scheme(request.param, 8, double=request.param == 'nf4')
  base = quantize_tree(plain, scheme)
  fresh = adapters.init(jax.random.key(0), base, 'lora', rank=2, targets=('attn/(q|o)', 'mlp/up'))
  return types.SimpleNamespace(
    model=model, plain=plain, base=base, scheme=scheme, fresh=fresh, adapter=tiny.trained(fresh),
    dense=jax.tree.map(dense, base, is_leaf=is_quantized),
    logits=jax.jit(functools.partial(lm.logits, model)))


def test_it_is_the_model_of_the_values(case):
  found = case.logits(case.base, case.adapter, *BATCH.values())
  expected = case.logits(case.dense, case.adapter, *BATCH.values())
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert np.abs(found - case.logits(case.plain, case.adapter, *BATCH.values())).max() > 1e-3


def test_a_fresh_adapter_is_the_base(case):
  ask = lambda adapter: case.logits(case.base, adapter, *BATCH.values())
  np.testing.assert_array_equal(ask(case.fresh), ask({}))


def loss_of(model):
  def loss(tree, base, batch, key):
    del key
    logprobs = lm.logprobs(model, base, tree, batch['tokens'], batch['mask'])
    return losses.next_token(logprobs, batch['mask']), {}

  return loss


def test_training_moves_the_adapter_as_over_the_values_and_no_bit_of_the_base(case):
  tx = optim.make('sgd', learning_rate=1e-1, steps=2)
  run = step.make_train_step(loss_of(case.model), tx, split=adapters.split)
  before, states = trees.digest(case.base), []
  for base in (case.base, case.dense):
    state = step.init_state(
      jax.tree.map(jnp.copy, case.adapter), tx, jax.random.key(0), adapters.split)
    for _ in range(2):
      state, metrics = run(state, base, BATCH)
    states.append(state.adapters)
  assert trees.digest(case.base) == before and metrics['finite'] == 1.0
  assert trees.digest(states[0]) != trees.digest(case.adapter)
  tiny.close(*states, atol=1e-5)


@pytest.mark.parametrize('copy', [False, True])
def test_decoding_with_a_cache_is_teacher_forcing(case, copy):
  tokens, mask = tiny.tokens(), jnp.ones((4, 10), bool)
  parts = decode.parts(case.model, case.base, case.adapter, copy=copy)

  @jax.jit
  def cached(tokens):
    first, cache = decode.prefill(case.model, parts, tokens[:, :6], mask[:, :6], 4)
    out, seen = [first], jnp.zeros((4, 4), bool)
    for i in range(3):
      seen = seen.at[:, i].set(True)
      logits, cache = decode.step(
        case.model, parts, cache, tokens[:, 6 + i], seen, jnp.asarray(i))
      out.append(logits)
    return jnp.stack(out, 1)

  expected = case.logits(case.base, case.adapter, tokens, mask)[:, 5:9]
  np.testing.assert_allclose(cached(tokens), expected, atol=2e-5)


def test_rollouts_never_merge_into_it(case):
  """Their log-probs are the trainer's; asked to merge, they refuse."""
  assert not stack.copies(case.base) and stack.copies(case.plain)
  args = (case.model, case.base, case.adapter, tiny.tokens(2, 4), jnp.ones((2, 4), bool),
          jax.random.key(0))
  options = dict(max_new_tokens=3, eos_id=2, pad_id=0)
  found = rollout(*args, **options)
  logprobs = lm.logprobs(case.model, case.base, case.adapter, found.tokens, found.mask)
  np.testing.assert_allclose(
    found.logprobs, jnp.where(found.response_mask, logprobs, 0.0), atol=1e-5)
  with pytest.raises(ValueError, match=f'found {case.scheme.tag} kernels.*rl.decode=adapter'):
    rollout(*args, **options, merged=True)


def test_a_stack_of_three_adapters_is_three(case):
  runs = [tiny.trained(case.fresh, seed=s) for s in range(3)]
  mapped = jax.jit(jax.vmap(functools.partial(lm.logits, case.model), (None, 0, None, None)))
  for run, logits in zip(runs, mapped(case.base, adapters.stack(runs), *BATCH.values())):
    np.testing.assert_allclose(
      logits, case.logits(case.base, run, *BATCH.values()), atol=2e-5)


def test_on_a_mesh_of_eight_devices_codes_lie_with_their_scales(case):
  mesh = sharding.mesh(data=2, fsdp=2, tensor=2)
  base = sharding.place(case.base, sharding.base_shardings(case.base, mesh))
  up = base['layers']['block']['mlp']['up']['kernel']
  assert up.codes.sharding.spec == up.scale.sharding.spec == P(None, 'fsdp', 'tensor')
  places = sharding.state_shardings(case.adapter, base, mesh)
  assert {p.spec for p in jax.tree.leaves(places)} == {P()}
  found = case.logits(
    base, sharding.place(case.adapter, places), **sharding.place_batch(BATCH, mesh))
  assert len(found.sharding.device_set) == 8
  np.testing.assert_allclose(
    found, case.logits(case.base, case.adapter, *BATCH.values()), atol=2e-5)


def test_merged_kernels_are_dense_and_compute_the_same(case):
  merged = adapters.merge(case.base, case.adapter)
  touched = set(adapters.nodes(case.adapter))
  for name, leaf in trees.flat(merged).items():
    assert is_quantized(leaf) == (name.endswith('/kernel') and name not in touched)
  np.testing.assert_allclose(
    case.logits(merged, {}, *BATCH.values()),
    case.logits(case.base, case.adapter, *BATCH.values()), atol=2e-5)
  assert merging.logit_difference(case.model, case.base, case.adapter, *BATCH.values()) < 2e-5
  assert merging.merge_error(case.base, case.adapter) == {
    'merge_error_max': 0.0, 'merge_error_rms': 0.0}


def test_the_errors_of_merging_to_bfloat16_and_of_quantizing_are_reported(case):
  half = trees.cast(case.base, jnp.bfloat16)
  merged = adapters.merge(half, case.adapter)
  assert {x.dtype for x in trees.flat(merged).values()} == {jnp.dtype('bfloat16')}
  exact = trees.flat(adapters.merge(case.base, case.adapter))
  pairs = [(np.float64(x), np.float64(exact[n])) for n, x in trees.flat(merged).items()
           if n in adapters.nodes(case.adapter)]
  apart, whole = (np.concatenate([f(a, b).ravel() for a, b in pairs]) for f in (
    lambda a, b: a - b, lambda a, b: b))
  found = merging.merge_error(half, case.adapter)
  np.testing.assert_allclose(
    list(found.values()), [np.abs(apart).max() / np.abs(whole).max(),
                           (np.square(apart).sum() / np.square(whole).sum())**0.5], rtol=1e-4)
  assert 1e-4 < found['merge_error_rms'] < 2**-8
  lost = merging.quantization_error(case.plain, case.base)
  least, most = {'nf4': (0.05, 0.1), 'int8': (0.003, 0.01)}[case.scheme.kind]
  assert least < lost['quantization_error_rms'] < most
  assert merging.quantization_error(case.dense, case.base)['quantization_error_max'] == 0.0


def test_full_tuning_of_it_is_refused(case):
  with pytest.raises(ValueError, match=f'found {case.scheme.tag} kernels; set model.quantize='):
    adapters.init(jax.random.key(0), case.base, 'full')


def test_a_kernel_of_another_shape_is_refused():
  model, base = tiny.make()
  wrong = tiny.make(mlp_width=32)[1]
  base['layers']['block']['mlp'] = quantize_tree(wrong, Scheme('int8', 8))['layers']['block']['mlp']
  with pytest.raises(ValueError, match=r'a quantized kernel of shape \[16, 24\]'):
    lm.logits(model, base, {}, *BATCH.values())


@pytest.mark.parametrize('remat', ['none', 'products', 'layer'])
def test_a_train_step_keeps_no_dense_kernel(remat):
  """Residuals of the whole model: codes alone are as large as a kernel."""
  model, base = tiny.make(remat=remat, width=64, mlp_width=96)
  base = trees.cast(quantize_tree(base, Scheme('nf4', 32)), jnp.bfloat16)
  adapter = tiny.lora(base, head=False)

  def residuals(adapter, base):
    loss = lambda adapter: loss_of(model)(adapter, base, BATCH, None)[0].total
    return jax.vjp(loss, adapter)[1]

  kept = jax.tree.leaves(jax.eval_shape(residuals, adapter, base))
  kernels = {leaf.shape[-2:] for leaf in trees.flat(base).values() if is_quantized(leaf)}
  floats = [k for k in kept if jnp.issubdtype(k.dtype, jnp.floating)]
  assert len(floats) > 5 and not [k for k in floats if k.shape[-2:] in kernels]
  assert scheme_of(base) == Scheme('nf4', 32)
