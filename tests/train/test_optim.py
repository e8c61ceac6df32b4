"""Optimizers and schedules by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perl.train import optim


def test_schedules_by_hand():
  rates = lambda name, **o: [
    float(optim.schedule(name, 1.0, steps=10, **o)(i)) for i in (0, 1, 6, 10, 20)]
  np.testing.assert_allclose(rates('constant'), 1.0)
  np.testing.assert_allclose(rates('linear'), [1.0, 0.9, 0.4, 0.0, 0.0], atol=1e-6)
  cosine = [(1 + np.cos(np.pi * i / 10)) / 2 for i in (0, 1, 6, 10, 10)]
  np.testing.assert_allclose(rates('cosine'), cosine, atol=1e-6)


@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_warm_up_rises_from_above_zero_to_the_peak(name):
  rate = optim.schedule(name, 0.5, steps=10, warmup_steps=4)
  found = [float(rate(i)) for i in range(5)]
  np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)
  if name != 'constant':
    np.testing.assert_allclose(rate(10), 0.0, atol=1e-7)


@pytest.mark.parametrize('name', optim.NAMES)
def test_every_optimizer_descends(name):
  tx = optim.make(name, learning_rate=0.05, steps=200, clip_norm=0.0)
  loss = lambda w: jnp.square(w - 3.0).sum()
  w = jnp.full((2, 2), 2.0)

  @jax.jit
  def update(w, state):
    updates, state = tx.update(jax.grad(loss)(w), state, w)
    return optax.apply_updates(w, updates), state

  state = tx.init(w)
  for _ in range(100):
    w, state = update(w, state)
  assert loss(w) < 0.1


def test_the_gradient_is_clipped_by_its_global_norm():
  move = lambda clip: optim.make('sgd', learning_rate=1.0, steps=1, clip_norm=clip)
  grads = {'a': jnp.asarray([3.0]), 'b': jnp.asarray([4.0])}
  found = lambda tx: tx.update(grads, tx.init(grads), grads)[0]
  np.testing.assert_allclose(found(move(1.0))['b'], -0.8, rtol=1e-6)
  np.testing.assert_allclose(found(move(50.0))['b'], -4.0)
  np.testing.assert_allclose(found(move(0.0))['b'], -4.0)


def test_weight_decay_is_apart_from_the_gradient():
  tx = optim.make('adamw', learning_rate=0.1, steps=1, weight_decay=0.5)
  w = {'w': jnp.asarray([2.0])}
  updates, _ = tx.update({'w': jnp.zeros(1)}, tx.init(w), w)
  np.testing.assert_allclose(updates['w'], -0.1 * 0.5 * 2.0, rtol=1e-6)


def test_unknown_names_are_errors_that_list_the_known():
  with pytest.raises(ValueError, match="adamw.*found 'adam'"):
    optim.make('adam', learning_rate=1.0, steps=1)
  with pytest.raises(ValueError, match="cosine.*found 'cos'"):
    optim.make('adamw', learning_rate=1.0, steps=1, schedule_name='cos')
