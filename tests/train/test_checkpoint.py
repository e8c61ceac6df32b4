"""Checkpoints: what is saved comes back to the bit, from the newest that is whole."""

import errno
import json
import logging
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from perl.train import checkpoint, storage
from perl.train.checkpoint import Checkpoints, CorruptError, DiskFullError, MismatchError


@pytest.fixture
def tree():
  """Every dtype and corner that a train state has."""
  return {
    'adapter': {'attn/q': {'a': jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3) / 3}},
    'a.b': jnp.float32(0.1),
    'a': {'b': jnp.int32(7)},
    'empty': {},
    'none': None,
    'key': jax.random.key_data(jax.random.key(3)),
    'mask': jnp.array([True, False]),
    'host': np.arange(3, dtype=np.int64) + 2**40,
    'nan': jnp.array([jnp.nan, -0., jnp.inf]),
  }


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert isinstance(a, np.ndarray) == isinstance(b, np.ndarray)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def steps_saved(folder, steps, **options):
  with Checkpoints(folder, **options) as checkpoints:
    for step in steps:
      checkpoints.save(step, {'w': jnp.full((4, 4), float(step))}, data_state={'n': step})
  return pathlib.Path(folder)


def largest_file(folder):
  return max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize('with_like', [True, False])
def test_save_tree_then_load_tree_is_the_identity(tmp_path, tree, with_like):
  checkpoint.save_tree(tmp_path / 'base', tree, {'digest': 'abc', 'rank': 8})
  loaded, meta = checkpoint.load_tree(tmp_path / 'base', tree if with_like else None)
  assert_same(loaded, tree)
  assert meta == {'digest': 'abc', 'rank': 8}


def test_shapes_are_enough_to_load(tmp_path, tree):
  del tree['host']
  checkpoint.save_tree(tmp_path / 'base', tree, {})
  loaded, _ = checkpoint.load_tree(tmp_path / 'base', jax.eval_shape(lambda: tree))
  assert_same(loaded, tree)
  assert not loaded['nan'].committed


def test_save_tree_replaces_the_former_one_and_leaves_nothing_beside_it(tmp_path):
  checkpoint.save_tree(tmp_path / 'base', {'w': jnp.zeros(2)}, {'n': 1})
  checkpoint.save_tree(tmp_path / 'base', {'w': jnp.ones(2)}, {'n': 2})
  loaded, meta = checkpoint.load_tree(tmp_path / 'base')
  assert meta == {'n': 2} and loaded['w'].tolist() == [1., 1.]
  assert [p.name for p in tmp_path.iterdir()] == ['base']


def test_nothing_is_pickled(tmp_path, tree, monkeypatch):
  forbid = lambda *args, **kwargs: pytest.fail('pickle was used')
  for name in ('dump', 'dumps', 'load', 'loads', 'Pickler', 'Unpickler'):
    monkeypatch.setattr(pickle, name, forbid)
  checkpoint.save_tree(tmp_path / 'base', tree, {})
  checkpoint.load_tree(tmp_path / 'base', tree)


def test_loads_onto_a_mesh(tmp_path):
  mesh = Mesh(np.array(jax.devices()), ('data',))
  n = len(jax.devices())
  split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('data',), ()))
  value = jnp.arange(4. * n).reshape(n, 4)
  checkpoint.save_tree(tmp_path / 'base', {'w': jax.device_put(value, split), 'b': value}, {})
  loaded, _ = checkpoint.load_tree(tmp_path / 'base', shardings={'w': whole, 'b': split})
  assert loaded['w'].sharding == whole and loaded['b'].sharding == split
  assert jnp.array_equal(loaded['w'], value) and jnp.array_equal(loaded['b'], value)
  one, _ = checkpoint.load_tree(tmp_path / 'base', shardings=split)
  assert one['w'].sharding == split
  like, _ = checkpoint.load_tree(tmp_path / 'base', loaded)
  assert like['w'].sharding == whole and like['b'].sharding == split


def test_eight_devices_write_what_one_device_reads(tmp_path):
  code = (
    'import sys, jax, jax.numpy as jnp, numpy as np\n'
    'from jax.sharding import Mesh, NamedSharding, PartitionSpec as P\n'
    'from perl.train import checkpoint\n'
    'mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "tensor"))\n'
    'x = jax.device_put(jnp.arange(64.).reshape(8, 8), NamedSharding(mesh, P("data", "tensor")))\n'
    'checkpoint.save_tree(sys.argv[1], {"x": x}, {})\n'
  )
  environment = os.environ | {
    'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': str(pathlib.Path(storage.__file__).parents[2]),
  }
  subprocess.run([sys.executable, '-c', code, tmp_path / 'base'], check=True, env=environment)
  loaded, _ = checkpoint.load_tree(tmp_path / 'base')
  assert jnp.array_equal(loaded['x'], jnp.arange(64.).reshape(8, 8))


@pytest.mark.parametrize('leaf', ['text', jax.random.key(0), np.array([None]), (1, 2)])
def test_a_leaf_that_cannot_be_stored_is_named(tmp_path, leaf):
  with pytest.raises(TypeError, match='tree/a/b.*remedy'):
    checkpoint.save_tree(tmp_path / 'x', {'a': {'b': leaf}}, {})
  assert not (tmp_path / 'x').exists()


def test_an_empty_tree_and_an_empty_array(tmp_path):
  checkpoint.save_tree(tmp_path / 'x', {}, {'n': 1})
  assert checkpoint.load_tree(tmp_path / 'x') == ({}, {'n': 1})
  with pytest.raises(ValueError, match=r'\(0, 3\).*remedy'):
    checkpoint.save_tree(tmp_path / 'y', {'w': jnp.zeros((0, 3))}, {})


def test_restore_gives_all_back(tmp_path, tree):
  meta, state = {'method': 'lora'}, {'position': [1, 2]}
  with Checkpoints(tmp_path / 'c') as checkpoints:
    assert checkpoints.restore(tree) is None
    assert checkpoints.save(5, tree, data_state=state, meta=meta, metrics={'loss': np.float32(2.)})
    assert not checkpoints.save(5, tree)  # the last step of a run, saved on schedule and at the end
  restored = Checkpoints(tmp_path / 'c').restore(tree)
  assert_same(restored.tree, tree)
  assert restored.step == 5 and restored.data_state == state and restored.meta == meta
  assert restored.metrics == {'loss': 2.}


def test_buffers_may_be_donated_and_changed_right_after_save(tmp_path):
  count = 1 << 20
  update = jax.jit(lambda x: x + 1., donate_argnums=0)
  unsaved = jnp.arange(count, dtype=jnp.float32)
  update(unsaved).block_until_ready()
  assert unsaved.is_deleted()  # donations are real here; one that a writer still reads is a copy
  x, host = jnp.arange(count, dtype=jnp.float32), np.arange(count)
  state = {'n': 1}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {'x': x, 'host': host}, data_state=state)
    for _ in range(3):
      x = update(x)
    x.block_until_ready()
    host[:] = -1
    state['n'] = 2
    checkpoints.wait()
    restored = checkpoints.restore()
  assert np.array_equal(restored.tree['x'], np.arange(count, dtype=np.float32))
  assert np.array_equal(restored.tree['host'], np.arange(count))
  assert restored.data_state == {'n': 1}


def test_restored_arrays_may_be_donated(tmp_path):
  folder = steps_saved(tmp_path, [1])
  restored = Checkpoints(folder).restore({'w': jnp.zeros((4, 4))})
  double = jax.jit(lambda x: x * 2, donate_argnums=0)(restored.tree['w'])
  assert jnp.array_equal(double, jnp.full((4, 4), 2.))


@pytest.mark.parametrize('mode, kept', [('max', [20, 50]), ('min', [30, 50])])
def test_keeps_the_best_and_the_last(tmp_path, mode, kept):
  values = {10: .5, 20: .9, 30: .1, 40: float('nan'), 50: None}
  options = {'keep_last': 1, 'keep_best': 1, 'best_metric': 'auc', 'best_mode': mode}
  with Checkpoints(tmp_path, **options) as checkpoints:
    for step, value in values.items():
      metrics = {} if value is None else {'auc': value}
      checkpoints.save(step, {'w': jnp.full(3, step)}, metrics=metrics)
  again = Checkpoints(tmp_path, **options)
  assert again.all_steps() == kept and again.best_step() == kept[0]
  assert again.restore(step=again.best_step()).tree['w'][0] == kept[0]


def test_keeps_the_last_two(tmp_path):
  folder = steps_saved(tmp_path, [1, 2, 3, 4], keep_last=2)
  assert Checkpoints(folder).all_steps() == [3, 4] and Checkpoints(folder).best_step() is None


def cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize('damage', [cut, flip, os.remove])
@pytest.mark.parametrize('name', ['largest', 'files.json', 'tree/_METADATA', 'about/metadata'])
def test_a_broken_newest_is_passed_over_with_a_warning(tmp_path, caplog, damage, name):
  folder = steps_saved(tmp_path, [10, 20])
  damage(largest_file(folder / '20' / 'tree') if name == 'largest' else folder / '20' / name)
  like = {'w': jnp.zeros((4, 4))}
  with caplog.at_level(logging.WARNING), Checkpoints(folder) as checkpoints:
    restored = checkpoints.restore(like)
    assert restored.step == 10 and restored.data_state == {'n': 10}
    assert '20' in caplog.text and 'expected' in caplog.text
    checkpoints.save(20, like, data_state={'n': 21})  # the run comes to this step again
  assert Checkpoints(folder).restore(like).data_state == {'n': 21}
  assert (folder / '20.broken').exists()


def test_a_save_that_was_killed_is_not_seen(tmp_path):
  folder = steps_saved(tmp_path, [10])
  (folder / '20.orbax-checkpoint-tmp').mkdir()
  with Checkpoints(folder) as checkpoints:
    assert checkpoints.restore().step == 10
    checkpoints.save(20, {'w': jnp.zeros(2)})
  assert sorted(os.listdir(folder)) == ['10', '20'] and Checkpoints(folder).restore().step == 20


def test_only_broken_ones_is_an_error_and_so_is_asking_for_one(tmp_path):
  folder = steps_saved(tmp_path, [10])
  cut(largest_file(folder / '10' / 'tree'))
  with pytest.raises(CorruptError, match='remedy'):
    Checkpoints(folder).restore()
  with pytest.raises(CorruptError, match='bytes'):
    Checkpoints(folder).restore(step=10)
  with pytest.raises(FileNotFoundError, match=r'step 11.*\[10\]'):
    Checkpoints(folder).restore(step=11)


def test_another_tree_is_refused_by_name_and_not_passed_over(tmp_path):
  folder = steps_saved(tmp_path, [10, 20])
  for like, words in [
    ({'w': jnp.zeros((4, 5))}, ['w:', 'float32[4, 5]', 'float32[4, 4]']),
    ({'w': jnp.zeros((4, 4), jnp.bfloat16)}, ['w:', 'bfloat16[4, 4]', 'float32[4, 4]']),
    ({'w': {'v': jnp.zeros(2)}}, ['w/v:', 'nothing', 'float32[2]']),
  ]:
    with pytest.raises(MismatchError) as error:
      Checkpoints(folder).restore(like)
    assert all(word in str(error.value) for word in [*words, 'remedy'])


def test_meta_is_checked_before_shapes(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {'a': jnp.zeros((3, 4))}, meta={'rank': 4})
  check = lambda meta: checkpoint.check_meta({'rank': 8}, meta)
  with pytest.raises(MismatchError, match='rank: expected 8, found 4'):
    Checkpoints(tmp_path).restore({'a': jnp.zeros((3, 8))}, check=check)


def test_a_step_that_is_not_beyond_the_newest_is_refused(tmp_path):
  folder = steps_saved(tmp_path, [10, 20])
  with pytest.raises(ValueError, match='beyond 20.*found 10.*remedy'):
    Checkpoints(folder).save(10, {'w': jnp.zeros(1)})


def test_check_meta_names_field_expected_found_and_remedy():
  found = {'rank': 4, 'targets': ['q', 'k'], 'alpha': 16., 'extra': 1}
  checkpoint.check_meta({'targets': ('q', 'k'), 'alpha': 16.}, found)
  with pytest.raises(MismatchError) as error:
    checkpoint.check_meta({'rank': 8, 'alpha': 16., 'base': 'abc'}, found)
  message = str(error.value)
  assert 'rank: expected 8, found 4' in message and 'remedy' in message
  assert "base: expected 'abc', found 'nothing'" in message and 'alpha' not in message


def test_a_full_disk_is_told_and_the_previous_checkpoint_stays(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path, keep_last=1)
  checkpoints.save(1, {'w': jnp.ones(3)})
  checkpoints.wait()

  def full(folder):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(storage, 'list_files', full)
    checkpoints.save(2, {'w': jnp.zeros(3)})
    with pytest.raises(DiskFullError, match='expected about 12 bytes.*found.*remedy') as error:
      checkpoints.wait()
  assert error.value.errno == errno.ENOSPC
  assert os.listdir(tmp_path) == ['1']
  assert checkpoints.restore().tree['w'].tolist() == [1., 1., 1.]
  assert checkpoints.save(2, {'w': jnp.zeros(3)})  # there is room again
  checkpoints.close()
  assert Checkpoints(tmp_path).all_steps() == [2]


def test_a_disk_that_is_really_full(tmp_path):
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', tmp_path], capture_output=True
  ) if hasattr(os, 'geteuid') and os.geteuid() == 0 else None
  if mounted is None or mounted.returncode:
    pytest.skip('no right to mount a small file system')
  try:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {'w': jnp.ones(3)})
    noise = np.random.default_rng(0).normal(size=1 << 19)
    with pytest.raises(DiskFullError, match='remedy'):
      checkpoints.save(2, {'w': noise})
      checkpoints.wait()
    checkpoints.close()
    assert os.listdir(tmp_path) == ['1'] and Checkpoints(tmp_path).restore().step == 1
  finally:
    subprocess.run(['umount', tmp_path], check=True)


def test_files_json_lists_every_file(tmp_path):
  folder = steps_saved(tmp_path, [1]) / '1'
  listed = set(json.loads((folder / 'files.json').read_text()))
  there = {p for p in folder.rglob('*') if p.is_file() and p.name not in storage.UNLISTED}
  assert {p.relative_to(folder).as_posix() for p in there} == listed


@pytest.mark.parametrize('text', [
  '', '{}', '[]', 'null', '{"tree/x": 1}', '{"tree/x": ["a", 2]}', '{"../x": [0, 0]}', '[' * 10**5])
def test_a_list_of_files_that_is_none_checks_nothing_and_is_refused(text, tmp_path):
  storage.save_tree(tmp_path / 'a', {'w': np.ones(4, np.float32)}, {'n': 1})
  (tmp_path / 'a' / storage.FILES).write_text(text)
  about = lambda folder: storage.read_about(storage.paths.absolute(folder))
  for read in (storage.load_tree, about):
    with pytest.raises(CorruptError, match='(?s)expected .*files.json.*, found.*remedy'):
      read(tmp_path / 'a')


def test_a_file_that_the_list_has_not_is_refused(tmp_path):
  storage.save_tree(tmp_path / 'a', {'w': np.ones(4, np.float32)}, {'n': 1})
  (tmp_path / 'a' / '.nfs0001').write_text('')  # as a file system may leave
  storage.load_tree(tmp_path / 'a')
  file = tmp_path / 'a' / storage.FILES
  table = json.loads(file.read_text())
  name = next(name for name in table if name.startswith('tree/d/'))
  file.write_text(json.dumps({n: x for n, x in table.items() if n != name}))
  with pytest.raises(CorruptError, match=f'expected {name} in files.json .*not listed'):
    storage.load_tree(tmp_path / 'a')
  file.write_text(json.dumps(table | {'tree/d/more': [0, 0]}))
  with pytest.raises(CorruptError, match='expected tree/d/more .* found it missing'):
    storage.load_tree(tmp_path / 'a')


def test_a_flipped_bit_in_the_about_is_found_before_it_is_used(tmp_path):
  storage.save_tree(tmp_path / 'a', {'w': np.ones(4, np.float32)}, {'n': 1})
  file = next(path for path in (tmp_path / 'a' / 'about').rglob('*') if b'"n"' in path.read_bytes())
  file.write_bytes(file.read_bytes().replace(b'1', b'3'))
  with pytest.raises(CorruptError, match='expected about/'):
    storage.read_about(storage.paths.absolute(tmp_path / 'a'))
