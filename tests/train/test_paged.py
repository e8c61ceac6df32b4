"""The optimizer's state in the host's memory: the same bits as on the device."""

import types

import flax.serialization
import jax
import jax.numpy as jnp
import pytest
import tiny

from perl.models import lm
from perl.objectives import losses
from perl.peft import adapters
from perl.train import checkpoint, loop, optim, paging, sharding, step

MASK = tiny.right_mask([10, 7, 1, 4])


@pytest.fixture(scope='module', params=['lora', 'full'])
def trained(request):
  """Two steps with the state on the device, and two with it in the host's memory, on a mesh."""
  model, base = tiny.make()
  mesh = sharding.mesh(data=2, fsdp=2, tensor=2)
  base = sharding.place(base, sharding.base_shardings(base, mesh))
  options = {'rank': 2} if request.param == 'lora' else {}
  adapter = tiny.trained(adapters.init(jax.random.key(0), base, request.param, **options))
  tx = optim.make('adamw', learning_rate=1e-2, steps=2, weight_decay=0.1)
  batch = sharding.place_batch({'tokens': tiny.tokens(), 'mask': MASK}, mesh)

  def loss(tree, base, batch, key):
    logprobs = lm.logprobs(model, base, tree, batch['tokens'], batch['mask'])
    return losses.next_token(logprobs, batch['mask']), {}

  def two(kind):
    state = step.init_state(jax.tree.map(jnp.copy, adapter), tx, jax.random.key(0), adapters.split)
    places = sharding.state_shardings(state, base, mesh)
    places = places.replace(
      opt_state=paging.page(state.opt_state, places.opt_state, mesh, kind))
    state = first = sharding.place(state, places)
    run = step.make_train_step(loss, tx, split=adapters.split, shardings=places)
    kinds = [memory_kinds(first.opt_state)]
    for _ in range(2):
      state, metrics = run(state, base, batch)
    return types.SimpleNamespace(
      state=state, metrics=metrics, kinds=[*kinds, memory_kinds(state.opt_state)],
      programs=run._cache_size())

  return {kind: two(kind) for kind in paging.KINDS}


def memory_kinds(tree) -> set[str]:
  return {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim}


def test_it_lies_where_it_shall_before_and_after(trained):
  assert trained['pinned_host'].kinds == [{'pinned_host'}] * 2
  assert trained['device'].kinds == [{'device'}] * 2
  assert memory_kinds(trained['pinned_host'].state.adapters) == {'device'}


def test_paged_steps_are_the_others_to_the_bit(trained):
  paged, plain = trained['pinned_host'], trained['device']
  tiny.equal(jax.device_get(paged.state.adapters), jax.device_get(plain.state.adapters))
  tiny.equal(jax.device_get(paged.state.opt_state), jax.device_get(plain.state.opt_state))
  assert paged.metrics == plain.metrics and paged.metrics['finite'] == 1.0
  assert paged.programs == 1


def test_saved_and_resumed_it_is_in_the_host_s_memory_again(trained, tmp_path):
  state = trained['pinned_host'].state
  checkpoint.save_tree(tmp_path / 'state', loop.to_arrays(state), {})
  found, _ = checkpoint.load_tree(tmp_path / 'state', like=loop.to_arrays(state))
  back = loop.from_arrays(state, found)
  assert memory_kinds(back.opt_state) == {'pinned_host'}
  tiny.equal(flax.serialization.to_state_dict(back), flax.serialization.to_state_dict(state))


@pytest.mark.parametrize('kind, found', [
  ('pinned_host', 'a platform with the memory pinned_host'), ('disk', "found 'disk'")])
def test_memory_that_is_not_there_is_refused(kind, found):
  device = types.SimpleNamespace(
    platform='toaster', device_kind='two slices',
    addressable_memories=lambda: [types.SimpleNamespace(kind='device')])
  with pytest.raises(ValueError, match=found):
    paging.check(types.SimpleNamespace(local_devices=[device]), kind)
