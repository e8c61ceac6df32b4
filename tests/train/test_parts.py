"""A large model learns from parts of a batch that keep little, with the whole batch's result."""

import jax
import numpy as np
import optax
import pytest
import tiny

from perl import machine
from perl.models import lm
from perl.objectives import losses
from perl.peft import adapters
from perl.train import memory, parts, sharding, step

ROWS, LENGTH = 16, 24
BATCH = {
  'tokens': np.asarray(tiny.tokens(ROWS, LENGTH)),
  'mask': np.asarray(tiny.right_mask(np.arange(ROWS) % 9 + 9, LENGTH))}


def learner(mesh, dropout=0.0, **options):
  """(the step, its arguments) of a language loss over a tiny model on a mesh."""
  model, base = tiny.make('llama')

  def loss(adapter, base, batch, key):
    logprobs = lm.logprobs(model, base, adapter, batch['tokens'], batch['mask'],
                           dropout_key=key if dropout else None)
    return losses.next_token(logprobs, batch['mask']), {}

  tx = optax.sgd(0.5)
  adapter = tiny.trained(tiny.lora(base, head=False, dropout=dropout))
  state = step.init_state(adapter, tx, jax.random.key(1), adapters.split)
  base = sharding.place(base, sharding.base_shardings(base, mesh))
  places = sharding.state_shardings(state, base, mesh)
  run = step.make_train_step(loss, tx, split=adapters.split, shardings=places, **options)
  return run, (sharding.place(state, places), base, sharding.place_batch(BATCH, mesh))


def large(monkeypatch, part_bytes):
  """Every base is a large one, whose parts may keep so many bytes."""
  monkeypatch.setattr(parts, 'SMALL_BYTES', -1)
  monkeypatch.setattr(parts, 'PART_BYTES', part_bytes)


@pytest.mark.parametrize('devices', [1, 2])
def test_a_large_model_learns_the_same_in_less_memory(devices, monkeypatch):
  mesh = sharding.mesh(data=devices, devices=jax.devices()[:devices])
  size = lambda run, arguments: memory.analysis(
    run.lower(*arguments).compile())['temporaries_bytes']
  run, arguments = learner(mesh)
  whole = size(run, arguments)
  expected = jax.device_get(run(*arguments)[0].adapters)
  large(monkeypatch, whole * devices // 4)
  run, arguments = learner(mesh)
  assert size(run, arguments) < whole / 2
  tiny.close(jax.device_get(run(*arguments)[0].adapters), expected, 1e-6)


def test_dropout_is_drawn_in_each_part(monkeypatch):
  large(monkeypatch, 0)
  run, arguments = learner(sharding.mesh(), dropout=0.5)
  state, metrics = run(*arguments)
  assert metrics['finite'] == 1.0 and int(state.step) == 1


def test_small_bases_losses_of_the_whole_batch_and_accelerators_are_not_cut(monkeypatch):
  run, arguments = learner(sharding.mesh())
  text = run.lower(*arguments).as_text()
  large(monkeypatch, 0)
  run, arguments = learner(sharding.mesh(), divisible=False)
  assert run.lower(*arguments).as_text() == text
  with machine.accelerated():
    run, arguments = learner(sharding.mesh())
  assert run.lower(*arguments).as_text() == text
  run, arguments = learner(sharding.mesh())
  assert run.lower(*arguments).as_text() != text


@pytest.mark.parametrize('groups', [1, 7, 12, 16])
@pytest.mark.parametrize('least', [1, 2])
def test_parts_are_the_fewest_that_fit(groups, least):
  for most in range(0, 130, 10):
    number = parts.fewest(groups, least, 10, most)
    assert number == least or number % least == 0 and groups % number == 0
    fits = [n for n in range(least, groups + 1, least)
            if groups % n == 0 and 10 * groups // n <= most]
    if fits:
      assert number == fits[0]
