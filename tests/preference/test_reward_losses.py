"""The losses of reward models on batches: rankings, ratings, and several models at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from perl.data.batches import pipeline
from perl.peft import adapters
from perl.preference import reward_losses
from perl.train import optim, population
from perl.train import step as steps

MODEL, BASE = tiny.make('llama', layers=1)
ADAPTER = tiny.trained(tiny.lora(BASE))
KEY = jax.random.key(0)


def rows(count, responses, seed=0):
  """Rankings of random ids: three of prompt, then two to four of response."""
  rng = np.random.default_rng(seed)
  ids = lambda n: rng.integers(3, tiny.V, n).astype(np.int32)
  made = []
  for index in range(count):
    prompt = ids(3)
    found = [np.concatenate([prompt, ids(rng.integers(2, 5))]) for _ in range(responses)]
    made.append({'index': index, 'responses': found, 'present': np.ones(responses, bool),
                 'prompt_tokens': 3})
  return made


def batch_of(made, kind):
  (batch,) = pipeline.evaluation_batches(made, kind=kind, batch_size=len(made), buckets=(8,))
  return batch


def make(kind, **options):
  """Jitted: the value of the loss and its metrics."""
  loss = reward_losses.make_loss(
    MODEL, kind=kind, **({'margin': False, 'centre': 0.0, 'dropout': False} | options))

  def values(adapter, batch):
    mean, metrics = loss(adapter, BASE, batch, KEY)
    return mean.value(), {name: m.value() for name, m in metrics.items()}

  return values


def test_a_ranking_of_two_is_a_pair():
  made = rows(4, 2)
  batches = batch_of(made, 'ranked'), batch_of(as_pairs(made), 'preference')

  @jax.jit
  def both(adapter):
    return [jax.value_and_grad(make(kind, centre=0.1), has_aux=True)(adapter, batch)
            for kind, batch in zip(('ranking', 'pairwise'), batches)]

  ranked, paired = both(ADAPTER)
  tiny.close(ranked, paired)
  assert paired[0][0] > 0.1


def as_pairs(made):
  return [{'index': row['index'], 'chosen': row['responses'][0], 'rejected': row['responses'][1],
           'margin': 0.5 * row['index'], 'prompt_tokens': 3} for row in made]


def test_a_response_that_is_not_there_changes_nothing():
  loss, made = jax.jit(make('ranking')), rows(3, 3)
  batch = batch_of(
    [row | {'present': np.array([True, True, False])} for row in made], 'ranked')
  expected = loss(ADAPTER, batch)
  garbage = batch['tokens'].copy()
  garbage[:, 2] = 5
  tiny.equal(loss(ADAPTER, batch | {'tokens': garbage}), expected)
  there = loss(ADAPTER, batch | {'present': np.ones((3, 3), bool)})
  assert abs(there[0] - expected[0]) > 1e-3


FLAT = {**ADAPTER, 'head': jax.tree.map(jnp.zeros_like, ADAPTER['head'])}
"""All its scores are 0."""


def test_ratings_are_learnt_as_numbers():
  made = [{'index': row['index'], 'tokens': row['responses'][0], 'rating': 0.3,
           'prompt_tokens': 3} for row in rows(4, 1)]
  loss, batch = jax.jit(make('regression')), batch_of(made, 'rated')
  for adapter in (ADAPTER, FLAT):
    found, metrics = loss(adapter, batch)
    np.testing.assert_allclose(metrics['mean_squared_error'], 2 * found, rtol=1e-5)
  np.testing.assert_allclose(found, 0.3**2 / 2, rtol=1e-5)


def test_margins_are_those_of_the_pairs():
  found, _ = jax.jit(make('pairwise', margin=True))(
    FLAT, batch_of(as_pairs(rows(4, 2)), 'preference'))
  np.testing.assert_allclose(found, np.log1p(np.exp([0.0, 0.5, 1.0, 1.5])).mean(), rtol=1e-5)


def test_a_stack_of_runs_is_so_many_runs():
  """Clipping and Adam see one run each: the stack's gradient is not clipped as a whole."""
  loss = reward_losses.make_loss(MODEL, kind='ranking', margin=False, centre=0.0, dropout=False)
  tx = optim.make('adamw', learning_rate=0.05, steps=4, clip_norm=0.05, eps=1e-3)
  members = [tiny.lora(BASE, seed) for seed in range(2)]
  batches = [batch_of(rows(4, 3, seed), 'ranked') for seed in range(3)]

  def runs(loss, tx, *starts):
    step, found = steps.make_train_step(loss, tx, split=adapters.split), []
    for start in starts:
      state = steps.init_state(
        jax.tree.map(jnp.copy, start), tx, jax.random.key(0), adapters.split)
      values = []
      for batch in batches:
        state, metrics = step(state, BASE, batch)
        values.append(metrics['loss'])
      found.append((state.adapters, values))
    return found

  ((stack, losses),) = runs(
    population.loss(loss, 2), population.optimizer(tx, 2), adapters.stack(members))
  alone = runs(loss, tx, *members)
  tiny.close(stack, adapters.stack([adapter for adapter, _ in alone]), atol=2e-4)
  np.testing.assert_allclose(losses, np.mean([found for _, found in alone], 0), rtol=1e-4)
  moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), stack, adapters.stack(members))
  assert optax.tree.max(moved) > 0.05


def test_members_drop_out_by_keys_of_their_own():
  loss = reward_losses.make_loss(MODEL, kind='ranking', margin=False, centre=0.0, dropout=True)
  twice = adapters.stack([tiny.trained(tiny.lora(BASE, dropout=0.5))] * 2)
  grads = jax.jit(jax.grad(functools.partial(
    lambda adapter, batch: population.loss(loss, 2)(adapter, BASE, batch, KEY)[0].total,
    batch=batch_of(rows(2, 2), 'ranked'))))(twice)
  first, second = (np.asarray(x) for x in grads['head']['kernel'])
  assert np.abs(first - second).max() > 1e-4
