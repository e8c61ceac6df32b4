"""The train step: microbatches, devices and the full batch agree; the base is left alone."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from perl import trees
from perl.models import lm
from perl.objectives import losses
from perl.peft import adapters
from perl.train import optim, sharding, step
from perl.types import Mean

ROWS = 16


@pytest.fixture(scope='module')
def language():
  """A language loss whose rows differ in their number of tokens, so that weights matter."""
  model, base = tiny.make('llama', layers=1, width=16, vocab_size=40)
  adapter = tiny.trained(tiny.lora(base, head=False))
  lengths = np.random.default_rng(0).integers(2, 9, ROWS)
  batch = {
    'tokens': np.asarray(tiny.tokens(ROWS, 8)), 'mask': np.asarray(tiny.right_mask(lengths, 8))}

  def loss(tree, base, batch, key):
    del key
    logprobs = lm.logprobs(model, base, tree, batch['tokens'], batch['mask'])
    mean = losses.next_token(logprobs, batch['mask'])
    return mean, {'again': mean, 'rows': Mean.of(jnp.ones(batch['mask'].shape[0]))}

  return types.SimpleNamespace(loss=loss, base=base, adapter=adapter, batch=batch)


def updated(language, *, mesh=None, steps=1, **options):
  """(adapters, metrics) after some steps of plain gradient descent."""
  tx = optax.sgd(0.5)
  state = step.init_state(
    jax.tree.map(jnp.copy, language.adapter), tx, jax.random.key(0), adapters.split)
  base, batch, places = language.base, language.batch, None
  if mesh is not None:
    base = sharding.place(base, sharding.base_shardings(base, mesh))
    places = sharding.state_shardings(state, base, mesh)
    state = sharding.place(state, places)
    batch = sharding.place_batch(batch, mesh)
  run = step.make_train_step(
    language.loss, tx, split=adapters.split, shardings=places, **options)
  for _ in range(steps):
    state, metrics = run(state, base, batch)
  return jax.device_get((state.adapters, metrics))


@pytest.fixture(scope='module')
def full(language):
  return updated(language)


def test_the_full_batch_is_divided_by_its_own_weight(language, full):
  """The gradient of the token-mean, by jax.grad of the quotient."""
  learnt, fixed = adapters.split(language.adapter)
  mean = lambda x: language.loss(
    trees.combine(x, fixed), language.base, language.batch, None)[0].value()
  value, grads = jax.jit(jax.value_and_grad(mean))(learnt)
  found, metrics = full
  expected = jax.tree.map(lambda x, g: x - 0.5 * g, learnt, grads)
  tiny.close(adapters.split(found)[0], jax.device_get(expected))
  np.testing.assert_allclose([metrics['loss'], metrics['again']], value, rtol=1e-5)
  np.testing.assert_allclose(metrics['grad_norm'], optax.global_norm(grads), rtol=1e-5)
  assert metrics['finite'] == 1.0 and metrics['rows'] == 1.0


@pytest.mark.parametrize('microbatches', [4])
def test_microbatches_are_the_full_batch(language, full, microbatches):
  tiny.close(updated(language, microbatches=microbatches), full, rtol=1e-4)


@pytest.mark.parametrize('shape', [
  dict(data=8), dict(data=1, fsdp=4, tensor=2)])
def test_eight_devices_are_the_full_batch(language, full, shape):
  tiny.close(updated(language, mesh=sharding.mesh(**shape)), full, rtol=1e-4)


def test_minibatches_on_devices_are_those_of_one(language):
  several = dict(epochs=2, minibatches=2)
  found = updated(language, mesh=sharding.mesh(data=2, fsdp=2, tensor=2), **several)
  tiny.close(found, updated(language, **several), rtol=1e-3)


def test_microbatches_on_devices_over_several_steps_compile_once(language, caplog):
  """Counted in the log: on a mesh, _cache_size counts signatures that share one program too."""
  mesh = sharding.mesh(data=2, fsdp=2, tensor=2)
  with jax.log_compiles(True):
    found = updated(language, mesh=mesh, microbatches=2, steps=3)
  compiled = [r for r in caplog.messages if r.startswith('Compiling jit(step)')]
  assert len(compiled) == 1, 'expected no compilation after the first step'
  tiny.close(found, updated(language, steps=3), rtol=1e-3)


# What follows needs no language model: y = w x with a base, by hand.

BASE = {'x': jnp.asarray(2.0)}


def square(tree, base, batch, key):
  """sum_b weight_b (w base - y_b)^2; NaN where y is."""
  del key
  error = jnp.square(tree['w'] * base['x'] - batch['y'])
  return Mean((error * batch['weight']).sum(), batch['weight'].sum()), {}


def batch_of(y, weight=None):
  y = jnp.asarray(y)
  return {'y': y, 'weight': jnp.ones_like(y) if weight is None else jnp.asarray(weight)}


def begin(tx, w=1.0, **more):
  return step.init_state({'w': jnp.float32(w), **more}, tx, jax.random.key(0))


def test_by_hand():
  tx = optax.sgd(0.1)
  run = step.make_train_step(square, tx)
  state, metrics = run(begin(tx), BASE, batch_of([0.0, 1.0, 100.0], [1.0, 3.0, 0.0]))
  # loss (1 * 4 + 3 * 1) / 4; gradient (1 * 2 * 2 * 2 + 3 * 2 * 1 * 2) / 4 = 5
  np.testing.assert_allclose(metrics['loss'], 7 / 4)
  np.testing.assert_allclose(metrics['grad_norm'], 5.0)
  np.testing.assert_allclose(state.adapters['w'], 0.5)
  assert state.step == 1


def test_a_batch_of_no_weight_changes_nothing():
  tx = optax.sgd(0.1)
  state, metrics = step.make_train_step(square, tx)(begin(tx), BASE, batch_of([5.0], [0.0]))
  assert state.adapters['w'] == 1.0 and metrics['loss'] == 0.0 and metrics['finite'] == 1.0


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('microbatches', [1, 2])
def test_what_is_not_finite_leaves_the_state_as_it_was(bad, microbatches):
  tx = optim.make('adamw', learning_rate=0.1, steps=9, weight_decay=0.1)
  run = step.make_train_step(square, tx, microbatches=microbatches)
  state, metrics = run(begin(tx), BASE, batch_of([0.0, 1.0]))
  assert metrics['finite'] == 1.0
  before = jax.device_get((state.adapters, state.opt_state))
  state, metrics = run(state, BASE, batch_of([0.0, bad]))
  assert metrics['finite'] == 0.0
  tiny.equal(jax.device_get((state.adapters, state.opt_state)), before)
  state, metrics = run(state, BASE, batch_of([0.0, 1.0]))
  assert metrics['finite'] == 1.0 and state.adapters['w'] != before[0]['w']


def test_a_gradient_that_is_not_finite_beside_a_loss_that_is():
  loss = lambda tree, base, batch, key: (Mean.of(jnp.sqrt(tree['w'] * base['x'])), {})
  tx = optax.sgd(0.1)
  state, metrics = step.make_train_step(loss, tx)(begin(tx, 0.0), BASE, {})
  assert metrics['loss'] == 0.0 and metrics['finite'] == 0.0 and state.adapters['w'] == 0.0


def test_only_the_state_is_donated():
  tx = optax.sgd(0.1)
  base, batch = {'x': jnp.asarray(2.0)}, batch_of([0.0, 1.0])
  state = begin(tx)
  step.make_train_step(square, tx)(state, base, batch)
  assert state.adapters['w'].is_deleted()
  assert not any(x.is_deleted() for x in jax.tree.leaves((base, batch)))


def test_each_step_and_each_microbatch_has_a_key_of_its_own():
  draw = lambda tree, base, batch, key: (
    Mean.of(0.0 * tree['w']), {'draw': Mean.of(jax.random.uniform(key))})
  tx = optax.sgd(0.1)
  one = step.make_train_step(draw, tx)
  state, first = one(begin(tx), BASE, batch_of([0.0, 1.0]))
  state, second = one(state, BASE, batch_of([0.0, 1.0]))
  _, again = one(begin(tx), BASE, batch_of([0.0, 1.0]))
  assert first['draw'] != second['draw'] and first['draw'] == again['draw']
  two = step.make_train_step(draw, tx, microbatches=2)
  _, mean = two(begin(tx), BASE, batch_of([0.0, 1.0]))
  keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
  expected = np.mean([jax.random.uniform(key) for key in keys])
  np.testing.assert_allclose(mean['draw'], expected, rtol=1e-6)


def test_fixed_leaves_have_no_optimizer_state_and_never_move():
  split = lambda tree: trees.partition(tree, lambda name: name != 'scale')
  tx = optim.make('adamw', learning_rate=0.1, steps=9, weight_decay=0.5)
  state = step.init_state({'w': jnp.float32(1.0), 'scale': jnp.float32(3.0)}, tx,
                          jax.random.key(0), split)
  run = step.make_train_step(square, tx, split=split)
  state, _ = run(state, BASE, batch_of([0.0]))
  assert state.adapters['scale'] == 3.0 and state.adapters['w'] < 1.0
  assert all('scale' not in name for name in trees.flat(state.opt_state))


def test_rows_that_microbatches_do_not_divide_are_an_error():
  tx = optax.sgd(0.1)
  with pytest.raises(ValueError, match='2 parts divide, found 3 rows'):
    step.make_train_step(square, tx, microbatches=2)(begin(tx), BASE, batch_of([0.0] * 3))


# --- Several updates of one batch


def straight(tree, base, batch, key):
  """Two terms with weights of their own: 2 x per token of `mask`, and x^2 per row."""
  del base, key
  x = tree['w']
  return {
    'tokens': Mean.of(x * batch['rows'][:, None] * jnp.ones((1, 3)), batch['mask']),
    'row': Mean.of(jnp.square(x) * jnp.ones_like(batch['rows'])),
  }, {'x': Mean.of(x)}


def line(rows=4):
  mask = np.asarray(tiny.right_mask([1, 3, 2, 3], 3))[:rows]
  return {'rows': jnp.arange(1.0, rows + 1), 'mask': mask}


def run_straight(**options):
  tx = optax.sgd(0.1)
  state = step.init_state({'w': jnp.float32(1.0)}, tx, jax.random.key(3))
  state, metrics = step.make_train_step(straight, tx, **options)(state, {}, line())
  return state, {name: float(value) for name, value in metrics.items()}


def test_terms_are_divided_each_by_its_own_weight_whatever_the_microbatches():
  expected = (1 * 1 + 2 * 3 + 3 * 2 + 4 * 3) / 9
  for parts in (1, 2, 4):
    state, metrics = run_straight(microbatches=parts)
    assert metrics['loss'] == pytest.approx(expected + 1.0, rel=1e-5)
    assert state.adapters['w'] == pytest.approx(1 - 0.1 * (expected + 2.0), rel=1e-5)


def test_epochs_and_minibatches_update_on_every_row_once_a_pass():
  """With rows' own gradients alone, one pass over single rows sums them, in any order."""
  def own(tree, base, batch, key):
    return Mean.of(tree['w'] * batch['rows']), {'row': Mean.of(batch['rows'])}

  tx = optax.sgd(0.1)
  for epochs in (1, 3):
    state = step.init_state({'w': jnp.float32(0.0)}, tx, jax.random.key(3))
    run = step.make_train_step(own, tx, epochs=epochs, minibatches=4)
    state, metrics = run(state, {}, line())
    assert state.adapters['w'] == pytest.approx(-0.1 * 10 * epochs, rel=1e-5)
    assert metrics['row'] == pytest.approx(2.5) and metrics['updates'] == 4 * epochs
    assert state.step == 1


def test_updates_stop_when_a_metric_says_so_and_the_state_stays():
  run = lambda **options: run_straight(epochs=3, minibatches=2, **options)
  whole, _ = run()
  state, metrics = run(stop=lambda values: values['x'] < 0.99)
  assert metrics['updates'] == 2  # at the second, x has moved
  assert state.adapters['w'] > whole.adapters['w']
  assert metrics['finite'] == 1.0 and np.isfinite(metrics['loss'])


def test_rows_that_belong_together_stay_so_in_minibatches():
  def own(tree, base, batch, key):
    apart = jnp.abs(batch['rows'][0::2] - batch['rows'][1::2])
    return Mean.of(tree['w'] * batch['rows']), {'apart': Mean.of(apart)}

  tx = optax.sgd(0.1)
  state = step.init_state({'w': jnp.float32(0.0)}, tx, jax.random.key(3))
  batch = {'rows': jnp.asarray([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0])}
  for parts in (2, 4):
    run = step.make_train_step(own, tx, epochs=4, minibatches=parts, together=2)
    _, metrics = run(jax.tree.map(jnp.copy, state), {}, batch)
    assert metrics['apart'] == 0.0


def test_a_batch_is_prepared_once_and_statistics_are_kept():
  def prepare(state, base, batch):
    seen = state.running['seen'] + batch['rows'].sum()
    rows = batch['rows'] * state.adapters['w']
    return state.replace(running={'seen': seen}), batch | {'rows': rows}

  tx = optax.sgd(0.1)
  own = lambda tree, base, batch, key: (Mean.of(tree['w'] * batch['rows']), {})
  state = step.init_state(
    {'w': jnp.float32(2.0)}, tx, jax.random.key(3), running={'seen': jnp.float32(1.0)})
  state, _ = step.make_train_step(own, tx, prepare=prepare, epochs=2)(state, {}, line())
  assert state.running['seen'] == 11.0
  assert state.adapters['w'] == pytest.approx(2 - 2 * 0.1 * 5.0)  # no gradient through prepare
