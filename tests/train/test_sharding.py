"""Placements on a mesh of eight virtual devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from perl import trees
from perl.models import lm
from perl.models.config import sized
from perl.models.transformer import Transformer
from perl.peft import adapters
from perl.train import sharding, step


@pytest.mark.parametrize('sizes, shape', [
  (dict(), (8, 1, 1)), (dict(data=2, fsdp=-1, tensor=2), (2, 2, 2)),
  (dict(data=1, fsdp=2, tensor=4), (1, 2, 4)),
])
def test_one_axis_takes_what_is_left(sizes, shape):
  mesh = sharding.mesh(**sizes)
  assert tuple(mesh.shape.items()) == tuple(zip(('data', 'fsdp', 'tensor'), shape))


@pytest.mark.parametrize('sizes', [
  dict(data=3), dict(data=-1, fsdp=16), dict(data=-1, fsdp=-1), dict(data=0), dict(data=2, fsdp=2)])
def test_sizes_that_do_not_fit_are_an_error(sizes):
  with pytest.raises(ValueError, match='8 devices'):
    sharding.mesh(**sizes)


def test_one_device_is_a_mesh_too():
  mesh = sharding.mesh(devices=jax.devices()[:1])
  assert mesh.size == 1


def test_every_matrix_of_the_base_is_spread_over_fsdp_and_tensor():
  """Every device holds an eighth of each of a 7B model's matrices, whatever their direction."""
  mesh = sharding.mesh(data=1, fsdp=4, tensor=2)
  base = lm.abstract(Transformer(sized('llama-2-7b')))
  for name, leaf in trees.flat(base).items():
    spec = sharding.base_spec(name, leaf.shape, mesh)
    if leaf.ndim >= 2 and 'norm' not in name:
      assert {'fsdp', 'tensor'} <= set(spec), name
    else:
      assert not any(spec), name
  block = 'layers/block'
  assert sharding.base_spec(f'{block}/attn/q/kernel', (32, 64, 64), mesh) == P(
    None, 'fsdp', 'tensor')
  for name in ('attn/o', 'mlp/down'):  # the input of these is what tensor splits
    assert sharding.base_spec(f'{block}/{name}/kernel', (32, 64, 64), mesh) == P(
      None, 'tensor', 'fsdp')


def test_an_axis_that_does_not_divide_is_left_out():
  mesh = sharding.mesh(data=1, fsdp=4, tensor=2)
  assert sharding.base_spec('embed/embedding', (37, 64), mesh) == P(None, 'fsdp')
  assert sharding.base_spec('attn/q/kernel', (2, 6, 9), mesh) == P(None, None, None)


def test_low_rank_adapters_are_replicated_and_full_ones_sharded_with_their_moments():
  mesh = sharding.mesh(data=1, fsdp=4, tensor=2)
  _, base = tiny.make('llama')
  for method, spread in (('lora', False), ('full', True)):
    adapter = adapters.init(jax.random.key(0), base, method, rank=2)
    state = step.init_state(adapter, optax.adam(1e-3), jax.random.key(0), adapters.split)
    places = trees.flat(sharding.state_shardings(state, base, mesh))
    found = {n: any(p.spec) for n, p in places.items() if 'attn/q/kernel' in n}
    assert len([n for n in found if n.startswith('opt_state')]) >= 2
    assert set(found.values()) == {spread}, method


def test_copies_of_the_last_layers_are_sharded_as_these_are():
  mesh = sharding.mesh(data=2, fsdp=2, tensor=2)
  base = tiny.make('llama', layers=4)[1]
  adapter = adapters.init(jax.random.key(0), base, 'topk', top_layers=2)
  places = sharding.state_shardings(adapter, base, mesh)
  query = places['layers']['block']['attn']['q']['kernel'].w
  assert query.spec == sharding.base_spec('layers/block/attn/q/kernel', (2, 16, 16), mesh)
  assert query.spec != jax.sharding.PartitionSpec()


def test_batches_are_spread_and_keep_their_order():
  mesh = sharding.mesh(data=2, fsdp=2, tensor=2)
  batch = {'tokens': np.arange(16).reshape(8, 2), 'weight': np.ones(8, np.float32)}
  placed = sharding.place_batch(batch, mesh)
  np.testing.assert_array_equal(placed['tokens'], batch['tokens'])
  assert placed['tokens'].addressable_shards[0].data.shape == (2, 2)
  with pytest.raises(ValueError, match='4 devices of the mesh, found 6 rows'):
    sharding.place_batch({'tokens': np.zeros((6, 2))}, mesh)


def test_the_state_keeps_its_placement_over_a_step(caplog):
  """Else the second step would be compiled anew, or full tuning gathered onto every device."""
  mesh = sharding.mesh(data=2, fsdp=2, tensor=2)
  model, base = tiny.make('llama', layers=1)
  base = sharding.place(base, sharding.base_shardings(base, mesh))
  adapter = adapters.init(jax.random.key(0), base, 'full')
  tx = optax.adam(1e-3)
  state = step.init_state(adapter, tx, jax.random.key(0), adapters.split)
  places = sharding.state_shardings(state, base, mesh)
  state = sharding.place(state, places)
  batch = sharding.place_batch(
    {'tokens': np.asarray(tiny.tokens(8)), 'mask': np.ones((8, 10), bool)}, mesh)

  def loss(tree, base, batch, key):
    logprobs = lm.logprobs(model, base, tree, batch['tokens'], batch['mask'])
    return step.Mean.of(-logprobs), {}

  run = step.make_train_step(loss, tx, split=adapters.split, shardings=places)
  with jax.log_compiles(True):
    for _ in range(3):
      state, _ = run(state, base, batch)
  assert len([m for m in caplog.messages if m.startswith('Compiling jit(step)')]) == 1
  for (path, x), place in zip(
    jax.tree_util.tree_leaves_with_path(state.adapters), jax.tree.leaves(places.adapters)
  ):
    assert x.sharding.is_equivalent_to(place, x.ndim), path
  assert jnp.isfinite(state.adapters['final_norm']['scale'].w).all()
