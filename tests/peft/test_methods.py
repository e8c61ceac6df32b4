"""Laws that every file of perl/peft obeys; a new method is found and tested by itself."""

import functools
import types

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl import trees
from perl.models import lm
from perl.objectives import losses
from perl.peft import adapters
from perl.train import checkpoint, optim, sharding, step

OPTIONS = dict(rank=2, alpha=4.0)
MASK = tiny.right_mask([10, 7, 1, 4])


def language_loss(model):
  def loss(tree, base, batch, key):
    del key
    logprobs = lm.logprobs(model, base, tree, batch['tokens'], batch['mask'])
    return losses.next_token(logprobs, batch['mask']), {}

  return loss


@pytest.fixture(scope='module', params=adapters.methods())
def method(request):
  model, base = tiny.make('gpt2')  # with biases and learnt positions: every kind of parameter
  init = functools.partial(adapters.init, base=base, method=request.param, **OPTIONS)
  fresh = init(jax.random.key(0))
  return types.SimpleNamespace(
    name=request.param, module=adapters.find(request.param), model=model, base=base, init=init,
    fresh=fresh, adapter=tiny.trained(fresh), logits=jax.jit(functools.partial(lm.logits, model)),
    batch={'tokens': tiny.tokens(), 'mask': MASK},
  )


def test_a_fresh_adapter_is_the_base(method):
  ask = lambda adapter: method.logits(method.base, adapter, tiny.tokens(), MASK)
  np.testing.assert_array_equal(ask(method.fresh), ask({}))


def test_project_is_merge(method):
  """x through the adapter == x through the merged matrix, and so for whole models."""
  rng = np.random.default_rng(0)
  x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 6), (6, 5)))
  delta = method.module.init(jax.random.key(1), w, **OPTIONS)
  delta = tiny.trained({'kernel': delta}, 0.3)['kernel']
  np.testing.assert_allclose(delta.project(x, w), x @ delta.merge(w), atol=1e-5)
  merged = adapters.merge(method.base, method.adapter)
  assert jax.tree.map(lambda a: a.dtype, merged) == jax.tree.map(lambda a: a.dtype, method.base)
  apart = method.logits(method.base, method.adapter, tiny.tokens(), MASK)
  together = method.logits(merged, {}, tiny.tokens(), MASK)
  np.testing.assert_allclose(apart, together, atol=2e-5)


def test_unmerge_is_the_inverse_or_refused(method):
  merged = adapters.merge(method.base, method.adapter)
  try:
    back = adapters.unmerge(merged, method.adapter)
  except ValueError as error:
    assert 'expected' in str(error)
  else:
    tiny.close(back, method.base, atol=1e-6)


def test_gradients_are_finite_differences(method):
  """Of project, in float64, with respect to the adapter and to x, along random directions."""
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    double = lambda tree: jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree)
    x, w = (jnp.asarray(rng.normal(size=s)) for s in ((3, 6), (6, 5)))
    delta = method.module.init(jax.random.key(1), w, **OPTIONS)
    delta = double(tiny.trained({'kernel': delta}, 0.3))
    learnt, fixed = adapters.split(delta)
    loss = lambda learnt, x: jnp.sin(
      trees.combine(learnt, fixed)['kernel'].project(x, w)).sum()
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), (learnt, x))
    moved = lambda size: jax.tree.map(lambda a, d: a + size * d, (learnt, x), direction)
    expected = (loss(*moved(1e-6)) - loss(*moved(-1e-6))) / 2e-6
    grads = jax.grad(loss, (0, 1))(learnt, x)
    found = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, direction))))
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.fixture(scope='module')
def after(method):
  """What two steps with weight decay leave behind."""
  tx = optim.make('adamw', learning_rate=1e-2, steps=2, weight_decay=0.5)
  state = step.init_state(
    jax.tree.map(jnp.copy, method.adapter), tx, jax.random.key(0), adapters.split)
  run = step.make_train_step(language_loss(method.model), tx, split=adapters.split)
  before = trees.digest(method.base)
  for _ in range(2):
    state, metrics = run(state, method.base, method.batch)
  return types.SimpleNamespace(
    state=state, metrics=metrics, before=before, after=trees.digest(method.base), run=run)


def test_training_moves_the_adapter_and_no_bit_of_the_base(method, after):
  assert after.metrics['finite'] == 1.0
  assert after.before == after.after
  assert trees.digest(after.state.adapters) != trees.digest(method.adapter)


def test_fixed_data_is_never_trained(method, after):
  """Not even by weight decay; the optimizer holds nothing for it."""
  learnt, fixed = adapters.split(method.adapter)
  tiny.equal(adapters.split(after.state.adapters)[1], fixed)
  moments = [x.shape for x in jax.tree.leaves(after.state.opt_state) if x.ndim]
  assert sorted(moments) == sorted(2 * [x.shape for x in jax.tree.leaves(learnt)])


def test_the_step_is_compiled_once(after):
  assert after.run._cache_size() == 1


def test_the_first_step_moves_a_fresh_adapter(method):
  loss = lambda learnt, fixed: language_loss(method.model)(
    trees.combine(learnt, fixed), method.base, method.batch, None)[0].value()
  grads = jax.jit(jax.grad(loss))(*adapters.split(method.fresh))
  assert any(np.any(g) for g in jax.tree.leaves(grads))


def test_counts_are_those_of_the_shapes(method):
  shapes = jax.eval_shape(method.init, jax.random.key(0))
  learnt, fixed = adapters.split(method.adapter)
  assert adapters.count(shapes) == adapters.count(method.adapter) == trees.count(learnt) > 0
  assert adapters.size_bytes(shapes) == trees.size_bytes(learnt) + trees.size_bytes(fixed)


def test_saved_and_loaded_is_the_same_to_the_bit(method, tmp_path):
  tree = flax.serialization.to_state_dict(method.adapter)
  checkpoint.save_tree(tmp_path / 'adapter', tree, {'method': method.name})
  loaded, meta = checkpoint.load_tree(tmp_path / 'adapter')
  assert meta['method'] == method.name
  shell = method.init(jax.random.key(5))
  tiny.equal(flax.serialization.from_state_dict(shell, loaded), method.adapter)


def test_a_stack_of_three_is_three(method):
  runs = [tiny.trained(method.fresh, seed=s) for s in range(3)]
  mapped = jax.jit(jax.vmap(functools.partial(lm.logits, method.model), (None, 0, None, None)))
  found = mapped(method.base, adapters.stack(runs), tiny.tokens(), MASK)
  for run, logits in zip(runs, found):
    expected = method.logits(method.base, run, tiny.tokens(), MASK)
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_on_a_mesh_of_eight_devices(method):
  mesh = sharding.mesh(data=2, fsdp=2, tensor=2)
  base = sharding.place(method.base, sharding.base_shardings(method.base, mesh))
  places = sharding.state_shardings(method.adapter, method.base, mesh)
  batch = sharding.place_batch({'tokens': tiny.tokens(), 'mask': MASK}, mesh)
  found = method.logits(base, sharding.place(method.adapter, places), **batch)
  assert len(found.sharding.device_set) == 8
  expected = method.logits(method.base, method.adapter, tiny.tokens(), MASK)
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_adapters_are_float32_beside_a_bfloat16_base(method):
  model, base = tiny.make('bfloat16')
  fresh = adapters.init(jax.random.key(0), base, method.name, head=True, **OPTIONS)
  assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype('float32')}
  plain = {'head': fresh['head']}
  tokens = tiny.tokens()
  both = jax.jit(lambda *a: [lm.score(model, base, x, tokens, MASK) for x in a])(plain, fresh)
  # Full copies of the base run the last layer whole, which rounds otherwise in bfloat16.
  np.testing.assert_allclose(*both, rtol=0, atol=0.02 if method.name == 'full' else 0.0)
  assert both[0].dtype == jnp.float32
  merged = adapters.merge(base, tiny.trained(fresh))
  assert jax.tree.map(lambda a: a.dtype, merged) == jax.tree.map(lambda a: a.dtype, base)
